"""The surface of grid values as a mesh whose vertices follow the values: what renders a field."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from modules.geometry.marching_cubes import CORNERS, crossings
from modules.geometry.well_composed import LEAST_SHARE, compose_well


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
    side = values.shape[0]
    line = torch.arange(side - 1, device=values.device)
    corners = torch.cartesian_prod(line, line, line)[:, None] + CORNERS.to(values.device)
    cells = (corners[..., 0] * side + corners[..., 1]) * side + corners[..., 2]
    signs = values.detach().double().flatten()
    compose_well(cells, signs, step)
    ends, faces, _ = crossings(cells, signs)
    inside = (signs < 0).view_as(values)
    values = torch.where(inside & (values > 0), torch.full_like(values, -least), values)
    first, second = values.flatten()[ends].unbind(dim=1)
    return GridSurface(ends, first / (first - second), faces)
