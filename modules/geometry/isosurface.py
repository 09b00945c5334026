"""The zero set of a signed distance as a watertight, manifold triangle mesh.

Marching cubes is manifold on a well-composed grid without zeros, libigl's edge collapse keeps a
manifold mesh one, and vertices stay apart when they are rounded to what files hold.
"""

from collections.abc import Callable

import igl
import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from skimage.measure import marching_cubes

from modules.geometry.mesh import smooth_normals
from modules.geometry.well_composed import join_diagonals

DistanceFunction = Callable[[ndarray], ndarray]
"""Maps world points `(p, 3)` to signed distances `(p,)`, positive outside."""

GRID_HALF_SIDE = 0.54
"""Grids span [-GRID_HALF_SIDE, GRID_HALF_SIDE]^3: the unit cube and a margin."""

LEAST_SHARE = 0.01
"""Grid values are at least this share of a cell away from 0. Where the surface passes through a
grid vertex, vertices of up to twelve cells would share its place and join what only touches."""


def extract_isosurface(
    distance: DistanceFunction,
    cells: int,
    points: Float[ndarray, "n 3"],
    half_side: float = GRID_HALF_SIDE,
) -> tuple[Float[ndarray, "v 3"], Int[ndarray, "f 3"]]:
    """Return the zero set of a distance function on a grid, evaluated near the surface only.

    A grid of half the cells is evaluated everywhere; the fine grid only in coarse cells that the
    surface can cross: those with a change of sign, with a value below a cell's diagonal, or with a
    known surface point. The border counts as outside, so the mesh is always closed.

    Args:
        distance: the field.
        cells: cells along a side of the fine grid, even.
        points: known surface points: features thinner than a coarse cell are found by them.
        half_side: the grid spans [-half_side, half_side]^3.
    """
    coarse_axis = np.linspace(-half_side, half_side, cells // 2 + 1)
    coarse = _evaluate(distance, coarse_axis, np.ones([len(coarse_axis)] * 3, dtype=bool))
    size = 2.0 * half_side / (cells // 2)
    low, high = _cell_range(coarse)
    closest = _cell_range(np.abs(coarse))[0]
    active = ((low < 0) & (high >= 0)) | (closest < 0.5 * size)
    index = np.clip(((points + half_side) / size).astype(np.int64), 0, cells // 2 - 1)
    active[tuple(index.T)] = True
    # A fine vertex is needed if any of the (up to eight) coarse cells around it is active.
    wanted = np.zeros([cells + 1] * 3, dtype=bool)
    for offset in np.ndindex(3, 3, 3):
        where = tuple(slice(o, o + cells - 1, 2) for o in offset)
        wanted[where] |= active
    axis = np.linspace(-half_side, half_side, cells + 1)
    fine: ndarray = ndimage.zoom(coarse, (cells + 1) / len(coarse_axis), order=1, grid_mode=False)
    fine[wanted] = _evaluate(distance, axis, wanted)[wanted]
    border = np.ones_like(wanted)
    border[1:-1, 1:-1, 1:-1] = False
    step = axis[1] - axis[0]
    fine[border] = np.maximum(fine[border], 0.5 * step)
    least = LEAST_SHARE * step
    fine = join_diagonals(
        np.where(fine < 0, np.minimum(fine, -least), np.maximum(fine, least)), least
    )
    if fine.min() >= 0:
        return np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64)
    vertices, faces, _, _ = marching_cubes(fine, 0.0, spacing=(step,) * 3, allow_degenerate=False)
    return vertices.astype(np.float64) - half_side, faces.astype(np.int64)


def drop_small_components(
    vertices: Float[ndarray, "v 3"], faces: Int[ndarray, "f 3"], share: float
) -> tuple[Float[ndarray, "u 3"], Int[ndarray, "g 3"]]:
    """Return the mesh without components of less area than `share` of the largest one's.

    Components that enclose negative volume (bubbles inside a solid) are dropped whatever their
    area: no view can have seen them.
    """
    if not len(faces):
        return vertices, faces
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = coo_matrix((np.ones(len(edges)), edges.T), shape=(len(vertices),) * 2)
    _, label = connected_components(graph, directed=False)
    face_label = label[faces[:, 0]]
    corners = vertices[faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.bincount(face_label, np.linalg.norm(cross, axis=1) / 2.0)
    volume = np.bincount(face_label, (corners[:, 0] * cross).sum(axis=1) / 6.0)
    kept = ((area >= share * area.max()) & (volume > 0))[face_label]
    return _compact(vertices, faces[kept])


def decimate(
    vertices: Float[ndarray, "v 3"], faces: Int[ndarray, "f 3"], num_faces: int
) -> tuple[Float[ndarray, "u 3"], Int[ndarray, "g 3"]]:
    """Return the mesh simplified by quadric error to `num_faces`, if it has more.

    A manifold mesh stays one: no edge collapses whose ends have more than two common neighbours.
    """
    if len(faces) <= num_faces:
        return vertices, faces
    vertices, faces, _, _ = igl.qslim(vertices, faces, num_faces)
    return _compact(vertices, faces.astype(np.int64))


def round_apart(
    vertices: Float[ndarray, "v 3"], faces: Int[ndarray, "f 3"], shift: float = 1e-6
) -> Float[ndarray, "v 3"]:
    """Return vertices rounded to float32, as files hold them, no two of them at one place.

    Readers join vertices of equal position. Those that rounding would join, where two parts of a
    surface touch, move inwards along their normals by multiples of `shift`, in world units.
    """
    rounded = vertices.astype(np.float32).astype(np.float64)
    inwards = -smooth_normals(vertices, faces)
    for _ in range(32):
        _, index, count = np.unique(rounded, axis=0, return_inverse=True, return_counts=True)
        index = index.reshape(-1)
        order = np.argsort(index, kind="stable")
        rank = np.empty(len(index), dtype=np.int64)
        rank[order] = np.arange(len(index)) - (np.cumsum(count) - count)[index[order]]
        moved = rank > 0
        if not moved.any():
            return rounded
        away = rounded[moved] + shift * rank[moved, None] * inwards[moved]
        rounded[moved] = away.astype(np.float32)
    raise ValueError("vertices could not be told apart: the mesh has shrunk to a point")


def _compact(
    vertices: Float[ndarray, "v 3"], faces: Int[ndarray, "f 3"]
) -> tuple[Float[ndarray, "u 3"], Int[ndarray, "g 3"]]:
    """Return the mesh without vertices that no face uses."""
    used, index = np.unique(faces, return_inverse=True)
    return vertices[used], index.reshape(-1, 3)


def _evaluate(
    distance: DistanceFunction, axis: Float[ndarray, " s"], wanted: Bool[ndarray, "s s s"]
) -> Float[ndarray, "s s s"]:
    """Return the field on the wanted vertices of a grid, 0 elsewhere."""
    index = np.ascontiguousarray(np.argwhere(wanted))  # as it comes, matmul is 10 times slower
    values = np.zeros(wanted.shape)
    for chunk in np.array_split(index, max(len(index) // 65536, 1)):
        values[tuple(chunk.T)] = distance(axis[chunk])
    return values


def _cell_range(
    values: Float[ndarray, "s s s"],
) -> tuple[Float[ndarray, "c c c"], Float[ndarray, "c c c"]]:
    """Return the least and greatest of every cell's eight corners."""
    low = high = values
    for axis in range(3):
        first = [slice(None)] * 3
        second = [slice(None)] * 3
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        low = np.minimum(low[tuple(first)], low[tuple(second)])
        high = np.maximum(high[tuple(first)], high[tuple(second)])
    return low, high
