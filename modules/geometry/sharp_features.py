"""Edges and corners that marching cubes cuts off, put back: extended marching cubes.

After Kobbelt et al., "Feature sensitive surface extraction from volume data" (2001). Where the
normals at a polygon's vertices tell of an edge or a corner inside of its cell, the polygon becomes
a fan around the point that lies on all their tangent planes, and what separates two such fans is
turned to join their middles. Two cells share one polygon edge at most on a well-composed grid, so
what was closed and manifold stays so.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.sparse import csr_array

from modules.geometry.mesh import smooth_normals

CANDIDATE_COSINE = np.cos(np.radians(5.0))
"""Normals of the mesh: polygons where none is farther from their mean are flat, and not asked."""

FEATURE_COSINE = np.cos(np.radians(18.0))
"""Normals of the field: of a polygon with a feature, one is farther from their mean."""

LEAST_EIGENVALUE = 0.1
"""Share of the largest: along weaker axes a feature's place is not told, and it stays amid."""

INSET = 0.01
"""Share of a cell by which features stay off its sides: no two may share a place."""

GRADIENT_SHARE = 0.1
"""Gradients are taken over twice this share of a cell: wider ones see both sides of an edge."""


def add_features(
    vertices: Float[ndarray, "v 3"],
    faces: Int[ndarray, "f 3"],
    cell: Int[ndarray, " f"],
    lowest: Float[ndarray, "c 3"],
    step: float,
    distance: Callable[[ndarray], ndarray],
) -> tuple[Float[ndarray, "u 3"], Int[ndarray, "g 3"]]:
    """Return a surface of `marching_cubes.march` with its edges and corners.

    Cells that hold two polygons are left as they are: walls that thin would meet. So are those
    where the field says that the feature is no nearer to its surface than the polygon.

    Args:
        vertices: of the surface, world.
        faces: fans of the cells' polygons, one after the other.
        cell: which cell each face lies in.
        lowest: the cells' lowest corners, world.
        step: the cells' side.
        distance: the field, whose zero set is the surface.
    """
    if not len(faces):
        return vertices, faces
    first, own, polygon, start, end = _polygon_edges(faces, cell)
    rings = csr_array((np.ones(len(start)), (polygon, start)), shape=(len(first), len(vertices)))

    def turns(normals: Float[ndarray, "v 3"], cosine: float) -> Bool[ndarray, " p"]:
        """Return of which polygons a vertex's normal departs from their mean."""
        mean = rings @ normals
        mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-30)
        departs = (normals[start] * mean[polygon]).sum(axis=1) < cosine
        return np.bincount(polygon[departs], minlength=len(first)) > 0

    featured = turns(smooth_normals(vertices, faces), CANDIDATE_COSINE)
    featured &= np.bincount(cell[first], minlength=len(lowest))[cell[first]] == 1
    asked = np.unique(start[featured[polygon]])
    normals = np.zeros_like(vertices)
    normals[asked] = gradient_normals(distance, vertices[asked], GRADIENT_SHARE * step)
    featured &= turns(normals, FEATURE_COSINE)
    chosen = np.flatnonzero(featured)
    flat, feature = _on_all_planes(rings[chosen], vertices, normals)
    low = lowest[cell[first[chosen]]]
    feature = np.clip(feature, low + INSET * step, low + (1.0 - INSET) * step)
    nearer = np.abs(distance(feature)) < np.abs(distance(flat))
    featured[chosen[~nearer]] = False

    number = len(vertices) + np.cumsum(featured) - 1  # that a featured polygon's feature gets
    # The polygon beyond each edge has the same edge the other way round.
    key, back = start * len(vertices) + end, end * len(vertices) + start
    order = np.argsort(key)
    beyond = polygon[order[np.searchsorted(key, back, sorter=order)]]
    third = np.where(featured[beyond], number[beyond], end)
    fans = np.stack([number[polygon], start, third], axis=1)[featured[polygon]]
    return (
        np.concatenate([vertices, feature[nearer]]),
        np.concatenate([faces[~featured[own]], fans]),
    )


def _polygon_edges(faces: Int[ndarray, "f 3"], cell: Int[ndarray, " f"]) -> tuple[ndarray, ...]:
    """Return what fans are of: their polygons' edges. Every vertex of a polygon starts one.

    Args:
        faces: fans, one after the other.
        cell: which cell each face lies in.

    Returns:
        Of each polygon its first face; of each face its polygon; of each edge its polygon, the
        vertex that it starts at, and the vertex that it ends at.
    """
    begins = np.ones(len(faces), dtype=bool)
    begins[1:] = (cell[1:] != cell[:-1]) | (faces[1:, 0] != faces[:-1, 0])
    own, first = np.cumsum(begins) - 1, np.flatnonzero(begins)
    last = np.append(first[1:], len(faces)) - 1
    start = np.concatenate([faces[:, 1], faces[first, 0], faces[last, 2]])
    end = np.concatenate([faces[:, 2], faces[first, 1], faces[last, 0]])
    every = np.arange(len(first))
    return first, own, np.concatenate([own, every, every]), start, end


def _on_all_planes(
    rings: csr_array, vertices: Float[ndarray, "v 3"], normals: Float[ndarray, "v 3"]
) -> tuple[Float[ndarray, "p 3"], Float[ndarray, "p 3"]]:
    """Return every polygon's middle, and the point nearest to its vertices' tangent planes.

    Args:
        rings: which vertices each polygon has, as ones.
        vertices: positions.
        normals: unit, at the vertices.
    """
    mean = (rings @ vertices) / np.asarray(rings.sum(axis=1))[:, None]
    outer = (normals[:, :, None] * normals[:, None]).reshape(-1, 9)
    quadric = (rings @ outer).reshape(-1, 3, 3)
    wanted = rings @ (normals * (normals * vertices).sum(axis=1, keepdims=True))
    missing = wanted - (quadric @ mean[:, :, None])[..., 0]
    value, axis = np.linalg.eigh(quadric)
    told = value > LEAST_EIGENVALUE * value[:, -1:]
    inverse = np.where(told, 1.0 / np.maximum(value, 1e-30), 0.0)
    return mean, mean + np.einsum("pij,pj,pkj,pk->pi", axis, inverse, axis, missing)


def gradient_normals(
    distance: Callable[[ndarray], ndarray], points: Float[ndarray, "p 3"], width: float
) -> Float[ndarray, "p 3"]:
    """Return the unit gradient of a field by four values around each point; 0 where it is flat.

    Args:
        distance: maps world points to values.
        points: where.
        width: half of the side of the cube whose alternate corners are asked.
    """
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=np.float64)
    gradient = sum(distance(points + width * corner)[:, None] * corner for corner in corners)
    length = np.linalg.norm(gradient, axis=1, keepdims=True)
    return gradient / np.maximum(length, 1e-30)
