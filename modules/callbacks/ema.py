"""Exponential moving average of the weights: what is validated, exported and used."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from data_pipeline.contract import UserError


class WeightAverage(lightning.Callback):
    """Averages the trained parameters after every optimizer step.

    The decay warms up as (1 + n) / (10 + n), so a short run is not held back by its start. During
    validation the module holds the averaged weights, as it does inside `averaged_weights` for an
    export. Checkpoints hold both, and a resumed run goes on exactly.

    Averages are float32 whatever the parameters are: bfloat16 rounds the small steps of a slow
    average away. Parameters that are sharded over processes as DTensors (FSDP2) are averaged shard
    by shard; DDP and ZeRO 1 and 2 leave them whole. ZeRO 3 empties them between uses: refused.

    Args:
        decay: weight of the old average once warmed up, in [0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay={decay} must lie in [0, 1)")
        self.decay = decay
        self.num_updates = 0
        self.average: dict[str, Tensor] = {}
        self._trained: dict[str, Tensor] = {}  # while the module holds the averages

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Refuse parameters that ZeRO 3 partitions, whose `ds_tensor` DeepSpeed keeps to itself.

        Raises:
            UserError: there is one.
        """
        if any(hasattr(parameter, "ds_tensor") for parameter in pl_module.parameters()):
            raise UserError(
                "an average of weights does not work under ZeRO stage 3, which empties them: train "
                "with trainer=deepspeed (stage 2), or without an average (~callbacks.ema)"
            )

    @torch.no_grad()
    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step == self.num_updates:
            return  # inside a gradient accumulation: the weights have not moved
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates = trainer.global_step
        parameters = dict(_trained_parameters(pl_module))
        if not self.average:
            self.average = {name: _float32_copy(p) for name, p in parameters.items()}
            return
        averages = [self.average[name].to(p.device) for name, p in parameters.items()]
        torch._foreach_lerp_(averages, [p.float() for p in parameters.values()], 1.0 - decay)
        self.average = dict(zip(parameters, averages, strict=True))

    def on_validation_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.swap(pl_module)

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.swap(pl_module)

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Let the module hold the averages, rounded to its own dtype; a second call undoes it."""
        parameters = {n: p for n, p in _trained_parameters(module) if n in self.average}
        values = self._trained or self.average
        trained = {} if self._trained else {n: p.detach().clone() for n, p in parameters.items()}
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
        self._trained = trained

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: plain values and tensors only."""
        return {"num_updates": self.num_updates, "average": self.average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.num_updates = state_dict["num_updates"]
        self.average = {name: _float32_copy(x) for name, x in state_dict["average"].items()}


def _float32_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32, copy=True)


def _trained_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


@contextmanager
def averaged_weights(trainer: lightning.Trainer, module: nn.Module) -> Iterator[None]:
    """Let the module hold its averaged weights; without a `WeightAverage`, its own."""
    callbacks: list[lightning.Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    averages = [callback for callback in callbacks if isinstance(callback, WeightAverage)]
    for average in averages:
        average.swap(module)
    try:
        yield
    finally:
        for average in reversed(averages):
            average.swap(module)
