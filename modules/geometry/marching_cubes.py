"""Marching cubes on a list of grid cells whose inside is well-composed: see `well_composed`.

No square of such a grid has two diagonal corners inside and the other two outside, so what crosses
a cell's faces is never in doubt, and the polygons inside follow from it: the table is made here.
Every polygon edge then belongs to two cells and every vertex to the four cells around a grid edge:
the surface is closed and manifold.
"""

import itertools

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

CORNERS = np.array(list(itertools.product((0, 1), repeat=3)))
"""Of a cell, as steps from its lowest corner along x, y and z; number 4 x + 2 y + z."""

SQUARES = np.array(
    [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
)
"""The corners of a cell's faces, counter-clockwise as seen from outside: lower x, upper x, ..."""

EDGES = np.array([(a, b) for a, b in itertools.combinations(range(8), 2) if a ^ b in (1, 2, 4)])
"""The ends of a cell's edges, the lower one first."""


def _polygons(inside: tuple[bool, ...]) -> list[list[int]]:
    """Return the edges that each polygon of a cell crosses, in order; normals point outside."""
    number = {tuple(edge): i for i, edge in enumerate(EDGES.tolist())}
    following = {}
    for square in SQUARES.tolist():
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


def _triangle_table() -> tuple[Int[ndarray, "256 t 3"], Int[ndarray, " 256"]]:
    """Return the edges that the triangles of every case cross, and how many triangles it has."""
    cases = []
    for code in range(256):
        polygons = _polygons(tuple(bool(code >> corner & 1) for corner in range(8)))
        cases.append([(p[0], *pair) for p in polygons for pair in itertools.pairwise(p[1:])])
    table = np.zeros((256, max(map(len, cases)), 3), dtype=np.int64)
    for code, triangles in enumerate(cases):
        table[code, : len(triangles)] = np.reshape(triangles, (-1, 3))
    return table, np.array([len(triangles) for triangles in cases])


TRIANGLES, NUM_TRIANGLES = _triangle_table()


def march(
    cells: Int[ndarray, "c 8"], place: Int[ndarray, "n 3"], values: Float[ndarray, " n"]
) -> tuple[Float[ndarray, "v 3"], Int[ndarray, "f 3"], Int[ndarray, " f"]]:
    """Return the surface between negative and other values; normals point to the latter.

    The third result is the cell that each face lies in. A cell's polygons follow each other, each
    as a fan around its first vertex.

    Args:
        cells: indices of each cell's corners, in the order of `CORNERS`; all that are crossed.
        place: grid coordinates of the corners.
        values: at the corners; none is 0.
    """
    ends, faces, cell = crossings(cells, values)
    low, high = ends.T
    share = (values[low] / (values[low] - values[high]))[:, None]
    return place[low] * (1.0 - share) + place[high] * share, faces, cell


def crossings(
    cells: Int[ndarray, "c 8"], values: Float[ndarray, " n"]
) -> tuple[Int[ndarray, "v 2"], Int[ndarray, "f 3"], Int[ndarray, " f"]]:
    """Return the corners between which each vertex lies, the faces and their cells; see `march`.

    Args:
        cells: indices of each cell's corners.
        values: at the corners; none is 0.
    """
    inside = values[cells] < 0
    code = inside @ (1 << np.arange(8))
    chosen = np.arange(TRIANGLES.shape[1]) < NUM_TRIANGLES[code][:, None]
    cell = np.nonzero(chosen)[0]
    edge = TRIANGLES[code][chosen]
    ends = cells[cell[:, None, None], EDGES[edge]]
    key, index = np.unique(ends[..., 0] * len(values) + ends[..., 1], return_inverse=True)
    return np.stack(np.divmod(key, len(values)), axis=1), index.reshape(-1, 3), cell
