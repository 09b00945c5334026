"""A name for the weights of a pretrained model, found within a second whatever their size."""

import hashlib

import torch
from torch import nn

from data_pipeline.contract import UserError

NUM_SAMPLES = 32
"""Numbers of each tensor that are looked at, evenly spread from the first to the last."""


def weights_fingerprint(network: nn.Module) -> str | None:
    """Return 16 hex digits that name a network's weights; None on the meta device.

    A SHA-256 over the name, the shape and `NUM_SAMPLES` numbers of every tensor, rounded to
    bfloat16: the same whether weights are loaded as float32 or bfloat16, from the hub or a folder,
    from one file or many. Another model or another training of it is told; a change of single
    numbers between those that are looked at is not.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if tensor.is_meta:
            return None
        digest.update(f"{name}:{tuple(tensor.shape)}:".encode())
        flat = tensor.detach().reshape(-1)
        if len(flat):
            last = torch.arange(NUM_SAMPLES, device=flat.device) * (len(flat) - 1)
            seen = flat[last // (NUM_SAMPLES - 1)].to(torch.bfloat16).float()
            digest.update(seen.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def check_fingerprint(found: str | None, expected: str | None, source: str) -> None:
    """Raise UserError if both are known and differ; `source` names where `found` was loaded from.

    Exports of before there were fingerprints know none, nor do networks on the meta device.
    """
    if found is not None and expected is not None and found != expected:
        raise UserError(
            f"{source} holds other weights (fingerprint {found}) than those that were trained with "
            f"({expected}): bring those back (a hub commit as revision pins them), or train again"
        )
