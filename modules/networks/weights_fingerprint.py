"""A name for the weights of a pretrained model, found within a second whatever their size."""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from data_pipeline.contract import UserError

NUM_SAMPLES = 32
"""Numbers of each tensor that are looked at, evenly spread from the first to the last."""


def weights_fingerprint(network: nn.Module) -> str | None:
    """Return 16 hex digits that name a network's weights; None on the meta device.

    A SHA-256 over the digests of all parameters, in the order of these: each over the shape and
    `NUM_SAMPLES` numbers, rounded to bfloat16. So it is the same whether weights are loaded as
    float32 or bfloat16, from the hub or a folder, from one file or many, and whatever a version of
    the library calls them or keeps as buffers. Another model or another training of it is told; a
    change of single numbers between those that are looked at is not.
    """
    digests = []
    for parameter in network.parameters():
        if parameter.is_meta:
            return None
        digest = hashlib.sha256(f"{tuple(parameter.shape)}:".encode())
        flat = parameter.detach().reshape(-1)
        if len(flat):
            last = torch.arange(NUM_SAMPLES, device=flat.device) * (len(flat) - 1)
            seen = flat[last // (NUM_SAMPLES - 1)].to(torch.bfloat16).float()
            digest.update(seen.cpu().numpy().tobytes())
        digests.append(digest.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()[:16]


def identity(config: Mapping[str, Any], other: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what names a frozen model in its configuration, to be compared with another's.

    Args:
        config: with `source`, `revision` and `fingerprint`: where both fingerprints are known, it
            does not matter where the weights were found; where one is not, that alone counts.
        other: what it is to be compared with; None: one of known fingerprint.
    """
    known = [each.get("fingerprint") for each in (config, other) if each is not None]
    left_out = {"fingerprint"} if None in known else {"source", "revision"}
    named = {key: value for key, value in config.items() if key not in left_out}
    if "source" in named and os.path.exists(named["source"]):
        named["source"] = os.path.abspath(named["source"])  # once it was kept as it was typed
    return named


def is_same_model(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two configurations name the same frozen model."""
    return identity(one, other) == identity(other, one)


def check_fingerprint(found: str | None, expected: str | None, source: str) -> None:
    """Raise UserError if both are known and differ; `source` names where `found` was loaded from.

    Exports of before there were fingerprints know none, nor do networks on the meta device.
    """
    if found is not None and expected is not None and found != expected:
        raise UserError(
            f"{source} holds other weights (fingerprint {found}) than those that were trained with "
            f"({expected}): bring those back (a hub commit as revision pins them), or train again"
        )
