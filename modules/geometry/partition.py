"""Parts of a mesh: halved again and again where the cut is short."""

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

DIRECTIONS = np.array(
    [
        [1, 0, 0],
        [0, 1, 0],
        [0, 0, 1],
        [1, 1, 0],
        [1, -1, 0],
        [1, 0, 1],
        [1, 0, -1],
        [0, 1, 1],
        [0, 1, -1],
    ],
    dtype=np.float64,
)
"""Normals of the planes that are tried: the axes and their diagonals."""

SLACK = 0.1
"""By how much of a part's faces its halves may differ from one half of them."""


def partition(
    vertices: Float[ndarray, "n 3"], faces: Int[ndarray, "f 3"], most_faces: int
) -> list[Int[ndarray, " p"]]:
    """Return the faces of each part.

    Args:
        vertices: positions.
        faces: vertex indices.
        most_faces: that a part has.
    """
    faces = faces.astype(np.int64)  # pairs of vertices get one number each
    start, end = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
    edge = np.minimum(start, end) * len(vertices) + np.maximum(start, end)
    order = np.argsort(edge)
    shared = np.flatnonzero(np.diff(edge[order]) == 0)
    neighbours = np.stack([order[shared], order[shared + 1]]) // 3
    along = vertices[end[order[shared]]] - vertices[start[order[shared]]]
    length = np.nan_to_num(np.linalg.norm(along, axis=1))
    height = DIRECTIONS @ vertices[faces].mean(axis=1).T
    return _halved(np.arange(len(faces)), height, neighbours, length, most_faces)


def _halved(
    faces: Int[ndarray, " p"],
    height: Float[ndarray, "d p"],
    neighbours: Int[ndarray, "2 e"],
    length: Float[ndarray, " e"],
    most_faces: int,
) -> list[Int[ndarray, " q"]]:
    """Return the parts of a part.

    Args:
        faces: of the part.
        height: of each face's centre along every direction.
        neighbours: faces that share an edge, by their places in `faces`.
        length: of that edge.
        most_faces: that a part has.
    """
    count = len(faces)
    if count <= most_faces:
        return [faces]
    least, most = max(1, round((0.5 - SLACK) * count)), round((0.5 + SLACK) * count)
    shortest, lower = np.inf, np.zeros(count, dtype=bool)
    for along in height:
        rank = np.empty(count, dtype=np.int64)
        rank[np.argsort(along)] = np.arange(count)
        first, last = rank[neighbours]
        first, last = np.minimum(first, last), np.maximum(first, last)
        # By how many faces are below the cut: the length of the edges that it separates.
        opened, closed = (np.bincount(at + 1, length, count + 1) for at in (first, last))
        cut = np.cumsum(opened - closed)[least : most + 1]
        if cut.min() < shortest:
            shortest, lower = cut.min(), rank < least + cut.argmin()
    parts: list[Int[ndarray, " q"]] = []
    for half in (lower, ~lower):
        place = np.cumsum(half) - 1
        inner = half[neighbours].all(axis=0)
        parts += _halved(
            faces[half], height[:, half], place[neighbours[:, inner]], length[inner], most_faces
        )
    return parts
