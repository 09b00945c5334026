"""Grids whose inside is bounded by a manifold: no parts that touch along an edge.

Where two diagonal corners of a grid square are inside and the other two outside, marching cubes
must guess whether the inside is joined, and joining it in one cell and not in the next leaves an
edge of four faces. A grid without such squares leaves nothing to guess.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from modules.geometry.marching_cubes import SQUARES

LEAST_SHARE = 0.01
"""Grid values are at least this share of a cell away from 0. Where the surface passes through a
grid vertex, vertices of up to twelve cells would share its place and join what only touches."""


def compose_well(cells: Int[Tensor, "c 8"], values: Float[Tensor, " n"], step: float) -> None:
    """Put corners inside, in place, until no inside corners touch only diagonally.

    Args:
        cells: indices of each cell's corners, in the order of `marching_cubes.CORNERS`.
        values: signed distances at the corners, negative inside.
        step: side of a cell, in the unit of the values.
    """
    while len(found := joints(cells, values)):
        values[found] = -LEAST_SHARE * step


def joints(cells: Int[Tensor, "c 8"], values: Float[Tensor, " n"]) -> Int[Tensor, " j"]:
    """Return the corners to put inside, so that no inside corners touch only diagonally.

    Of the two outside corners of such a square, the one nearest to the surface. What is put inside
    may touch others: ask again until nothing is returned.

    Args:
        cells: indices of each cell's corners, in the order of `marching_cubes.CORNERS`.
        values: signed distances at the corners, negative inside.
    """
    inside = (values < 0)[cells].T.contiguous()
    found = [cells.new_zeros(0)]
    for square in SQUARES:
        for one, other in ((square[::2], square[1::2]), (square[1::2], square[::2])):
            apart = inside[one[0]] & inside[one[1]] & ~(inside[other[0]] | inside[other[1]])
            corners = cells[apart][:, other]
            nearest = values[corners].argmin(dim=1, keepdim=True)
            found.append(corners.gather(1, nearest)[:, 0])
    return torch.cat(found).unique()
