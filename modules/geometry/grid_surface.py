"""The surface of grid values as a mesh whose vertices follow the values: what renders a field."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from skimage.measure import marching_cubes
from torch import Tensor

from modules.geometry.well_composed import join_diagonals

LEAST_SHARE = 0.01
"""Values are taken to be at least this share of a cell away from 0: no vertex lies on a corner."""


@dataclass(frozen=True)
class GridSurface:
    """The zero set of values on a grid.

    Args:
        ends: flat indices of the two grid points between which each vertex lies.
        share: how far from the first to the second, differentiable in the values.
        faces: vertex indices, counter-clockwise seen from outside, where values are positive.
    """

    ends: Int[Tensor, "v 2"]
    share: Float[Tensor, " v"]
    faces: Int[Tensor, "f 3"]

    def interpolate(self, values: Float[Tensor, "n c"]) -> Float[Tensor, "v c"]:
        """Return what lies at the vertices of values given at all grid points, in flat order."""
        first, second = values[self.ends[:, 0]], values[self.ends[:, 1]]
        return first + self.share[:, None] * (second - first)


def grid_surface(values: Float[Tensor, "s s s"], step: float) -> GridSurface:
    """Return the zero set of signed distances on a grid; it has no faces where there is none.

    Marching cubes decides how vertices join; where each lies between its two grid points follows
    from their values, and so does its gradient.

    Args:
        values: positive outside. Those at the border count as outside.
        step: between grid points, in the unit of the values.
    """
    border = torch.ones_like(values, dtype=torch.bool)
    border[1:-1, 1:-1, 1:-1] = False
    least = LEAST_SHARE * step
    values = torch.where(border, values.clamp_min(0.5 * step), values)
    values = torch.where(values < 0, values.clamp_max(-least), values.clamp_min(least))
    # Else marching cubes puts some vertices inside of cells, where no two values decide.
    fixed = join_diagonals(values.detach().cpu().numpy(), least)
    joined = torch.from_numpy(fixed).to(values.device)
    values = torch.where((joined < 0) & (values > 0), joined, values)
    empty = torch.zeros(0, dtype=torch.int64, device=values.device)
    if fixed.min() >= 0.0:
        return GridSurface(empty.view(0, 2), values.flatten()[:0], empty.view(0, 3))
    places, faces, _, _ = marching_cubes(fixed.astype(np.float32), 0.0, allow_degenerate=False)
    places = torch.from_numpy(places.copy()).to(values.device)
    low = places.floor().long()
    high = low + (places > low).long()  # one coordinate lies between two grid points
    strides = torch.tensor([values.shape[1] * values.shape[2], values.shape[2], 1])
    strides = strides.to(values.device)
    ends = torch.stack([(low * strides).sum(dim=1), (high * strides).sum(dim=1)], dim=1)
    first, second = values.flatten()[ends].unbind(dim=1)
    return GridSurface(
        ends, first / (first - second), torch.from_numpy(faces.astype("int64")).to(values.device)
    )
