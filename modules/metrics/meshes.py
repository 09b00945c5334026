"""The figures of many meshes as one torchmetrics metric: pair by pair, on any number of ranks."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from data_pipeline.contract import UserError
from modules.geometry.mesh import Mesh
from modules.metrics.geometry import Surface
from modules.metrics.lpips import load_lpips
from modules.metrics.scoring import FIGURE_KEYS, ScoringOptions, score, summarise


class MeshMetrics(Metric):
    """Score meshes pair by pair and summarise them, as `eval.py` does and by the same functions.

    Args:
        options: how figures are taken.
    """

    full_state_update = False
    rows: list[Tensor] | Tensor
    num_failed: Tensor

    def __init__(self, options: ScoringOptions) -> None:
        super().__init__()
        self.options = options
        if options.lpips_weights is not None:
            load_lpips(options.lpips_weights)  # wrong weights are told before the first pair
        # A rank that saw no pair sends an empty row, which has no columns: hence flat.
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.add_state("num_failed", default=torch.tensor(0), dist_reduce_fx="sum")
        self.set_dtype(torch.float64)

    def update(self, predicted: Mesh | None, surface: Surface, reference: Mesh | None) -> None:
        """Score one pair.

        Args:
            predicted: mesh in the frame where the reference fills the unit cube; None for a pair
                that failed. One without area is counted as failed, too.
            surface: the reference's surface in that frame.
            reference: the reference mesh, where there is one.
        """
        try:
            if predicted is None:
                raise UserError("there is no mesh")
            figures = score(predicted, surface, reference, self.options)
        except UserError:
            self.num_failed += 1
            return
        assert isinstance(self.rows, list)
        row = [figures.get(key, float("nan")) for key in FIGURE_KEYS]
        self.rows.append(torch.tensor(row, dtype=torch.float64, device=self.device))

    def compute(self) -> dict[str, dict[str, float]]:
        """Return median, mean, p10 and p90 of every figure over all pairs, see `summarise`."""
        flat = dim_zero_cat(self.rows) if len(self.rows) else torch.empty(0)
        table = flat.view(-1, len(FIGURE_KEYS)).tolist()
        pairs = [dict(zip(FIGURE_KEYS, row, strict=True)) for row in table]
        return summarise(pairs, int(self.num_failed))
