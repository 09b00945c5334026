"""How well a texture is used: what share of it faces cover, and how much of that more than once."""

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from modules.geometry.mesh import Mesh
from modules.geometry.spans import triangle_spans

UV_SIDE_PX = 1024
"""Points along each side of the unit square at which coverage is looked up."""


def uv_quality(mesh: Mesh) -> dict[str, float]:
    """Return `uv_coverage` and `uv_overlap`, over all textures of a mesh.

    Coverage is the share of the unit square that faces cover, overlap the share of the covered area
    that more than one face covers. Both are NaN without a texture, overlap also when nothing is
    covered. Faces are moved by whole tiles so that their lowest corner lies in the unit square; the
    part that then still lies outside is left out.
    """
    textures = np.unique(mesh.face_texture[mesh.face_texture >= 0])
    counts = np.stack([_coverage(mesh, int(i)) for i in textures]) if len(textures) else np.empty(0)
    covered = int((counts > 0).sum())
    return {
        "uv_coverage": covered / counts.size if counts.size else float("nan"),
        "uv_overlap": float((counts > 1).sum() / covered) if covered else float("nan"),
    }


def _coverage(mesh: Mesh, texture: int) -> Int[ndarray, "h w"]:
    """Return how many faces of one texture cover each point, row 0 at v = 0."""
    corners = mesh.corner_uv[mesh.face_texture == texture]
    corners = corners - np.floor(corners.min(axis=1, keepdims=True))
    spans = triangle_spans(corners * UV_SIDE_PX, UV_SIDE_PX)
    steps = np.zeros((UV_SIDE_PX, UV_SIDE_PX + 1), dtype=np.int64)
    np.add.at(steps, (spans.row, spans.start), 1)
    np.add.at(steps, (spans.row, spans.end), -1)
    return np.cumsum(steps, axis=1)[:, :-1]
