"""Grids whose inside is bounded by a manifold: no parts that touch along an edge or at a corner.

Where two diagonal corners of a grid square are inside and the other two outside, marching cubes
must guess whether the inside is joined; Lewiner's tests guess with care, and still now and then
leave an edge of four faces. A grid without such squares and cubes leaves nothing to guess.
"""

import itertools

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray


def join_diagonals(values: Float[ndarray, "s s s"], depth: float) -> Float[ndarray, "s s s"]:
    """Return the grid with -`depth` where inside corners would touch only diagonally.

    Of the outside corners that keep two inside corners of a square or of a cube apart, the one
    nearest to the surface becomes inside, until none is left to join. The grid's border must be
    outside, and stays so.

    Args:
        values: signed distances, negative inside, on the vertices of a grid.
        depth: how far inside the joining vertices come to lie; positive.
    """
    values = values.copy()
    while True:
        squares = [_square_joints(values, *axes) for axes in ((0, 1), (0, 2), (1, 2))]
        joined = np.concatenate([*squares, _cube_joints(values)])
        if not len(joined):
            return values
        values.flat[joined] = -depth


def _square_joints(values: Float[ndarray, "s s s"], first: int, second: int) -> Int[ndarray, " n"]:
    """Return flat indices of the vertices to fill in squares that span two axes."""
    corners = [
        _shifted(values.shape, {first: a, second: b}) for a, b in ((0, 0), (1, 1), (0, 1), (1, 0))
    ]
    inside = [values[corner] < 0 for corner in corners]
    found = []
    for one, other in (((0, 1), (2, 3)), ((2, 3), (0, 1))):
        apart = inside[one[0]] & inside[one[1]] & ~inside[other[0]] & ~inside[other[1]]
        found.append(_nearest(values, [corners[k] for k in other], apart))
    return np.concatenate(found)


def _cube_joints(values: Float[ndarray, "s s s"]) -> Int[ndarray, " n"]:
    """Return flat indices of the vertices to fill in cubes with one long diagonal of its own."""
    offsets = list(itertools.product((0, 1), repeat=3))
    corners = [_shifted(values.shape, dict(enumerate(offset))) for offset in offsets]
    inside = [values[corner] < 0 for corner in corners]
    count = sum(each.astype(np.int8) for each in inside)
    found = []
    for k in range(4):  # corner 7 - k lies opposite to corner k
        rest = [corner for i, corner in enumerate(corners) if i not in (k, 7 - k)]
        found.append(_nearest(values, rest, (count == 2) & inside[k] & inside[7 - k]))
        ends = [corners[k], corners[7 - k]]
        found.append(_nearest(values, ends, (count == 6) & ~inside[k] & ~inside[7 - k]))
    return np.concatenate(found)


def _nearest(
    values: Float[ndarray, "s s s"],
    corners: list[tuple[slice, ...]],
    where: Bool[ndarray, "a b c"],
) -> Int[ndarray, " n"]:
    """Return the flat index of the corner of least value, for the cells in question."""
    cells = np.argwhere(where)
    start = np.array([[axis.start for axis in corner] for corner in corners])
    vertex = cells[:, None] + start[None]
    flat = np.asarray(np.ravel_multi_index(tuple(np.moveaxis(vertex, -1, 0)), values.shape))
    return flat[np.arange(len(cells)), values.ravel()[flat].argmin(axis=1)]


def _shifted(shape: tuple[int, ...], offset: dict[int, int]) -> tuple[slice, ...]:
    """Return the slices that read one corner of all cells: 0 or 1 along the axes named."""
    return tuple(
        slice(offset[axis], size - 1 + offset[axis]) if axis in offset else slice(0, size)
        for axis, size in enumerate(shape)
    )
