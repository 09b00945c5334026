"""Marching cubes on a list of grid cells whose inside is well-composed: see `well_composed`.

No square of such a grid has two diagonal corners inside and the other two outside, so what crosses
a cell's faces is never in doubt, and the polygons inside follow from it: the table is made here.
Every polygon edge then belongs to two cells and every vertex to the four cells around a grid edge:
the surface is closed and manifold.
"""

import itertools

import torch
from jaxtyping import Float, Int
from torch import Tensor

CORNERS = torch.tensor(list(itertools.product((0, 1), repeat=3)), device="cpu")
"""Of a cell, as steps from its lowest corner along x, y and z; number 4 x + 2 y + z."""

SQUARES = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
"""The corners of a cell's faces, counter-clockwise as seen from outside: lower x, upper x, ..."""

EDGES = [(a, b) for a, b in itertools.combinations(range(8), 2) if a ^ b in (1, 2, 4)]
"""The ends of a cell's edges, the lower one first."""


def _polygons(inside: tuple[bool, ...]) -> list[list[int]]:
    """Return the edges that each polygon of a cell crosses, in order; normals point outside."""
    number = {edge: i for i, edge in enumerate(EDGES)}
    following = {}
    for square in SQUARES:
        around = list(zip(square, [*square[1:], square[0]], strict=True))
        leaving = [(a, b) for a, b in around if inside[a] and not inside[b]]
        entering = [(a, b) for a, b in around if inside[b] and not inside[a]]
        if len(leaving) > 1:
            return []  # not well-composed
        for out, back in zip(leaving, entering, strict=True):
            following[number[min(back), max(back)]] = number[min(out), max(out)]
    polygons = []
    while following:
        start, edge = following.popitem()
        polygon = [start]
        while edge != start:
            polygon.append(edge)
            edge = following.pop(edge)
        polygons.append(polygon)
    return polygons


def _triangle_table() -> tuple[Int[Tensor, "256 t 3 2"], Int[Tensor, " 256"]]:
    """Return the corners between which every case's triangles lie, and how many there are."""
    cases = []
    for code in range(256):
        polygons = _polygons(tuple(bool(code >> corner & 1) for corner in range(8)))
        cases.append([(p[0], *pair) for p in polygons for pair in itertools.pairwise(p[1:])])
    table = torch.zeros(256, max(map(len, cases)), 3, dtype=torch.long, device="cpu")
    for code, triangles in enumerate(cases):
        table[code, : len(triangles)] = torch.tensor(
            triangles, dtype=torch.long, device="cpu"
        ).view(-1, 3)
    number = torch.tensor([len(triangles) for triangles in cases], device="cpu")
    return torch.tensor(EDGES, device="cpu")[table], number


TRIANGLES, NUM_TRIANGLES = _triangle_table()


def march(
    cells: Int[Tensor, "c 8"], place: Int[Tensor, "n 3"], values: Float[Tensor, " n"]
) -> tuple[Float[Tensor, "v 3"], Int[Tensor, "f 3"], Int[Tensor, " f"]]:
    """Return the surface between negative and other values; normals point to the latter.

    The third result is the cell that each face lies in. A cell's polygons follow each other, each
    as a fan around its first vertex.

    Args:
        cells: indices of each cell's corners, in the order of `CORNERS`; all that are crossed.
        place: grid coordinates of the corners.
        values: at the corners; none is 0.
    """
    ends, faces, cell = crossings(cells, values)
    low, high = ends.unbind(dim=1)
    share = (values[low] / (values[low] - values[high]))[:, None]
    return place[low] * (1.0 - share) + place[high] * share, faces, cell


def crossings(
    cells: Int[Tensor, "c 8"], values: Float[Tensor, " n"]
) -> tuple[Int[Tensor, "v 2"], Int[Tensor, "f 3"], Int[Tensor, " f"]]:
    """Return the corners between which each vertex lies, the faces and their cells; see `march`.

    Args:
        cells: indices of each cell's corners.
        values: at the corners; none is 0.
    """
    triangles, number = TRIANGLES.to(cells.device), NUM_TRIANGLES.to(cells.device)
    bit = 2 ** torch.arange(8, device=cells.device)
    code = ((values < 0)[cells] * bit).sum(dim=1)
    rank = torch.arange(triangles.shape[1], device=cells.device)
    cell, rank = (rank < number[code][:, None]).nonzero(as_tuple=True)
    corners = triangles[code[cell], rank]
    ends = cells[cell].gather(1, corners.view(-1, 6)).view(-1, 2)
    key, index = (ends[:, 0] * len(values) + ends[:, 1]).unique(return_inverse=True)
    ends = torch.stack([key // len(values), key % len(values)], dim=1)
    return ends, index.view(-1, 3), cell
