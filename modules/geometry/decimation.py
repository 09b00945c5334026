"""Fewer triangles: a closed manifold mesh stays one.

Fast Quadric Mesh Simplification merges vertices ten times as fast as libigl does, but sometimes so
that surfaces touch. Where they do its merges are undone; libigl, which merges none like that, takes
the mesh from there to the number of triangles wanted, if they are still too many.
"""

import fast_simplification
import igl
import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

QUICK_SHARE = 0.995
"""Of the triangles wanted, what the quick pass is to leave: merges undone bring some back."""

AGGRESSIVENESS = 3.0
"""How fast the quick pass raises the error that it allows: slowly, to do the least harm first."""

MOST_REPAIRS = 8
"""Rounds of undoing merges; one is mostly enough."""


def decimate(
    vertices: Float[ndarray, "v 3"], faces: Int[ndarray, "f 3"], num_faces: int
) -> tuple[Float[ndarray, "u 3"], Int[ndarray, "g 3"]]:
    """Return the mesh simplified by quadric error to `num_faces`, if it has more.

    Args:
        vertices: of a closed manifold mesh, world.
        faces: vertex indices.
        num_faces: the result has at most so many.
    """
    if len(faces) > num_faces:
        vertices, faces = compact(*_merge_quickly(vertices, faces, int(QUICK_SHARE * num_faces)))
    if len(faces) > num_faces:
        vertices, faces, _, _ = igl.qslim(vertices, faces, num_faces)
    return compact(vertices, faces.astype(np.int64))


def compact(
    vertices: Float[ndarray, "v 3"], faces: Int[ndarray, "f 3"]
) -> tuple[Float[ndarray, "u 3"], Int[ndarray, "g 3"]]:
    """Return the mesh without vertices that no face uses."""
    used, index = np.unique(faces, return_inverse=True)
    return vertices[used], index.reshape(-1, 3)


def _merge_quickly(
    vertices: Float[ndarray, "v 3"], faces: Int[ndarray, "f 3"], num_faces: int
) -> tuple[Float[ndarray, "v 3"], Int[ndarray, "g 3"]]:
    """Return a closed manifold mesh of about `num_faces`; the same where merging spoils it."""
    places, _, merges = fast_simplification.simplify(
        vertices.astype(np.float32),
        faces.astype(np.int32),
        target_count=num_faces,
        agg=AGGRESSIVENESS,
        return_collapses=True,
    )
    kept = np.arange(len(vertices))  # by vertex, the one that it became
    kept[merges[:, 1]] = merges[:, 0]
    while (kept[kept] != kept).any():
        kept = kept[kept]
    left = _merged(faces, kept)
    moved = vertices.copy()
    moved[np.unique(left)] = places
    for _ in range(MOST_REPAIRS):
        faulty = _faulty_vertices(left)
        if not len(faulty):
            return moved, left
        undone = np.flatnonzero(np.isin(kept, faulty))
        kept[undone], moved[undone] = undone, vertices[undone]
        left = _merged(faces, kept)
    return vertices, faces


def _merged(faces: Int[ndarray, "f 3"], kept: Int[ndarray, " v"]) -> Int[ndarray, "g 3"]:
    """Return the faces that are left when every vertex is another, or itself."""
    corners = kept[faces]
    return corners[(corners != np.roll(corners, 1, axis=1)).all(axis=1)]


def _faulty_vertices(faces: Int[ndarray, "f 3"]) -> Int[ndarray, " k"]:
    """Return the vertices where a surface is not closed or no manifold.

    At an edge that two faces do not run along in opposite ways, or where fans of faces meet.
    """
    if not len(faces):
        return np.empty(0, dtype=np.int64)
    start, end = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
    count = int(start.max()) + 1
    # By edge, then by direction: the two of a sound edge come together, and no third.
    edge = 2 * (np.minimum(start, end) * count + np.maximum(start, end)) + (start > end)
    order = np.argsort(edge)
    edge = edge[order]
    step = np.diff(edge)
    paired = np.flatnonzero((step == 1) & (edge[:-1] % 2 == 0))
    opposite = np.full(len(edge), -1)
    opposite[order[paired]], opposite[order[paired + 1]] = order[paired + 1], order[paired]
    ends = np.concatenate([order[1:][step == 0], np.flatnonzero(opposite < 0)])
    # A corner's edge has beyond it the same edge of another face, which starts where that ends.
    following = np.where(opposite < 0, np.arange(len(edge)), opposite)
    following = following // 3 * 3 + (following + 1) % 3
    ring = (np.ones(len(start), dtype=bool), (np.arange(len(start)), following))
    _, fan = connected_components(coo_array(ring, shape=(len(start),) * 2), directed=False)
    fans = np.bincount(start[np.unique(fan, return_index=True)[1]], minlength=count)
    return np.unique(np.concatenate([start[ends], end[ends], np.flatnonzero(fans > 1)]))
