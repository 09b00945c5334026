"""Norms of the gradients of each expert: whether all of a mixture of LoRA learns."""

from collections.abc import Iterator

import lightning
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from data_pipeline.contract import MODALITIES


class ExpertGradients(lightning.Callback):
    """Logs `train/grad_norm/<expert>`: before clipping, for `shared`, each modality and `other`.

    `other` is all that belongs to no expert: embeddings, the text encoder, and a backbone that is
    trained as a whole. Strategies that hold gradients elsewhere (DeepSpeed) log nothing.
    """

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Optimizer
    ) -> None:
        step = trainer.global_step + 1  # the one that is about to be made
        if step % trainer.log_every_n_steps:  # pyright: ignore[reportAttributeAccessIssue]
            return
        norms = expert_norms(pl_module)
        pl_module.log_dict({f"train/grad_norm/{name}": norm for name, norm in norms.items()})


def expert_norms(module: nn.Module) -> dict[str, Tensor]:
    """Return the norm of the gradients of each expert that has any."""
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            for expert, gradient in _by_expert(name, parameter.grad):
                parts.setdefault(expert, []).append(torch.linalg.vector_norm(gradient.float()))
    return {name: torch.linalg.vector_norm(torch.stack(norms)) for name, norms in parts.items()}


def _by_expert(name: str, gradient: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the gradient's parts, each with its expert, by the names of `AdaptedLinear`."""
    kind = name.rpartition(".")[2]
    if kind in ("shared_down", "shared_up"):
        yield "shared", gradient
    elif kind in ("modality_down", "modality_up"):
        yield from zip(MODALITIES, gradient, strict=True)
    else:
        yield "other", gradient
