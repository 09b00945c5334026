"""Training loss per modality and range of noise levels: where there is more to learn."""

from collections.abc import Mapping
from typing import Any

import lightning
import torch
from torch import Tensor

from data_pipeline.contract import MODALITIES


class TimestepBins(lightning.Callback):
    """Logs `train/loss_at/<modality>/<from>-<to>`: the mean since the last time.

    NaN where nothing was drawn since then: Lightning would repeat the value of a figure that is
    left out.

    Reads `errors` and `timesteps` (b m) of what the system's training step returns. Clean
    modalities do not count. What is logged is what the first process saw.

    Args:
        num_bins: ranges of equal width between 0 and 1.
    """

    def __init__(self, num_bins: int = 4) -> None:
        if num_bins < 1:
            raise ValueError(f"num_bins={num_bins} must be at least 1")
        self.num_bins = num_bins
        self.sums: Tensor | None = None  # errors, then counts: (2, m, bins)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Mapping[str, Any],
        batch: Any,
        batch_idx: int,
    ) -> None:
        new = bin_sums(outputs["errors"], outputs["timesteps"], self.num_bins)
        self.sums = new if self.sums is None else self.sums + new
        if trainer.global_step % trainer.log_every_n_steps:  # pyright: ignore[reportAttributeAccessIssue]
            return
        errors, counts = self.sums.cpu()
        self.sums = None
        edges = [f"{i / self.num_bins:.2f}" for i in range(self.num_bins + 1)]
        figures = {
            f"train/loss_at/{name}/{edges[i]}-{edges[i + 1]}": errors[m, i] / counts[m, i]
            for m, name in enumerate(MODALITIES)
            for i in range(self.num_bins)
        }
        pl_module.log_dict(figures, batch_size=1)


def bin_sums(errors: Tensor, timesteps: Tensor, num_bins: int) -> Tensor:
    """Return the sums of errors and their number, per modality and range of timesteps (2, m, bins).

    Args:
        errors: per sample and modality.
        timesteps: of each; 0 is clean and does not count.
        num_bins: ranges of equal width between 0 and 1.
    """
    index = (timesteps * num_bins).long().clamp(max=num_bins - 1)
    inside = torch.nn.functional.one_hot(index, num_bins) * (timesteps > 0.0)[..., None]
    return torch.stack([(inside * errors[..., None]).sum(0), inside.sum(0).to(errors.dtype)])
