"""How much of the space inside two closed meshes they share."""

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from modules.geometry.mesh import Mesh, merge_vertices
from modules.geometry.spans import triangle_spans

NUM_COLUMNS = 256
"""Columns along each side of the box around both meshes, in which space is measured."""

_TILT = np.array([[2.0, -1.0, 2.0], [2.0, 2.0, -1.0], [-1.0, 2.0, 2.0]]) / 3.0
"""A rotation (about the diagonal): columns run askew to walls, which stand along the axes."""


def volume_iou(predicted: Mesh, reference: Mesh) -> float:
    """Return the intersection over union of the space inside two closed meshes, in [0, 1].

    Inside is where the winding number is not 0, so it does not matter whether a mesh is inside out,
    and parts may cross. Along each of `NUM_COLUMNS`² parallel columns the lengths are exact.

    Args:
        predicted: watertight mesh, see `mesh_quality`; an open one has no inside.
        reference: another, in the same frame.
    """
    meshes = [
        merge_vertices(mesh.vertices @ _TILT.T, mesh.faces) for mesh in (predicted, reference)
    ]
    used = np.concatenate([vertices[np.unique(faces)] for vertices, faces in meshes])
    corner, size = used.min(axis=0), np.ptp(used, axis=0).max()
    crossings = [_crossings((v - corner) / size, faces) for v, faces in meshes]
    column, height, turn = (np.concatenate(parts) for parts in zip(*crossings, strict=True))
    of_predicted = np.arange(len(column)) < len(crossings[0][0])
    order = np.lexsort((height, column))
    inside = [np.cumsum((turn * own)[order]) != 0 for own in (of_predicted, ~of_predicted)]
    # A closed mesh is left as often as it is entered: between columns both counts are 0.
    length = np.diff(height[order], append=0.0)
    shared, alone = length[inside[0] & inside[1]].sum(), length[inside[0] ^ inside[1]].sum()
    return float(shared / (shared + alone)) if shared > 0.0 else 0.0


def _crossings(
    vertices: Float[ndarray, "n 3"], faces: Int[ndarray, "f 3"]
) -> tuple[Int[ndarray, " c"], Float[ndarray, " c"], Int[ndarray, " c"]]:
    """Return where upright columns cross a mesh in the unit cube: column, height, and 1 or -1."""
    corners = vertices[faces] * NUM_COLUMNS
    spans = triangle_spans(corners[..., :2], NUM_COLUMNS)
    width = spans.end - spans.start
    span = np.repeat(np.arange(len(width)), width)
    x = np.arange(len(span)) + (spans.start - np.cumsum(width) + width)[span]
    face, row = spans.triangle[span], spans.row[span]
    origin = corners[:, 0]
    normal = np.cross(corners[:, 1] - origin, corners[:, 2] - origin)
    slope = normal[:, :2] / np.where(normal[:, 2:] != 0.0, normal[:, 2:], 1.0)
    offset = np.stack([x, row], axis=1) + 0.5 - origin[face, :2]
    height = origin[face, 2] - (slope[face] * offset).sum(axis=1)
    # On faces that stand almost upright rounding may carry the point out of the face.
    height = np.clip(height, corners[..., 2].min(axis=1)[face], corners[..., 2].max(axis=1)[face])
    turn = np.where(spans.counter_clockwise[span], 1, -1)
    return row * NUM_COLUMNS + x, height / NUM_COLUMNS, turn
