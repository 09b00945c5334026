"""Whether a mesh is sound, whatever it should look like."""

import igl.predicates
import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from modules.geometry.mesh import merge_vertices


def mesh_quality(vertices: Float[ndarray, "n 3"], faces: Int[ndarray, "f 3"]) -> dict[str, float]:
    """Return counts of faults after vertices of equal position are made one.

    Texture seams split vertices in files, so without that weld every textured mesh looks torn.

    Keys: `faces`; `degenerate_faces` (corners that coincide, or no area); `border_edges` (edges of
    one face); `tangled_edges` (edges of three faces or more, or of two that run the same way);
    `pinched_vertices` (where fans of faces meet at a point only); `self_intersecting_faces` (faces
    that meet another in more than a corner or an edge that both have; a copy of a face does);
    `components` (parts joined by edges or corners); `manifold` (1 when no edge is tangled and no
    vertex is pinched);
    `watertight` (1 when no edge is tangled or on a border) and `genus` (handles of all parts
    together, by Euler's formula; NaN unless both manifold and watertight).
    """
    welded_vertices, welded = merge_vertices(vertices, faces)
    corners = welded_vertices[welded]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    collapsed = (welded == np.roll(welded, 1, axis=1)).any(axis=1)
    degenerate = collapsed | (np.linalg.norm(cross, axis=1) < 1e-14)
    solid = welded[~collapsed]  # a face without area still closes a surface; one of two corners not
    edges = np.concatenate([solid[:, [0, 1]], solid[:, [1, 2]], solid[:, [2, 0]]])
    directed = edges[:, 0] < edges[:, 1]
    _, index, uses = np.unique(
        np.sort(edges, axis=1), axis=0, return_inverse=True, return_counts=True
    )
    forward = np.bincount(index.reshape(-1), weights=directed, minlength=len(uses))
    border = int((uses == 1).sum())
    tangled = int(((uses > 2) | ((uses == 2) & (forward != 1))).sum())
    pinched = _count_pinched(solid, index.reshape(3, -1).T)
    component = face_components(solid)
    num_components = int(component.max(initial=-1)) + 1
    # V - E + F = sum over the parts of 2 - 2 genus, where every part is a closed surface.
    characteristic = len(np.unique(solid)) - len(uses) + len(solid)
    closed = len(solid) > 0 and tangled == pinched == border == 0
    return {
        "faces": float(len(faces)),
        "degenerate_faces": float(degenerate.sum()),
        "border_edges": float(border),
        "tangled_edges": float(tangled),
        "pinched_vertices": float(pinched),
        "self_intersecting_faces": float(len(self_intersecting_faces(welded_vertices, solid))),
        "components": float(num_components),
        "genus": num_components - characteristic / 2.0 if closed else float("nan"),
        "manifold": float(tangled == 0 and pinched == 0),
        "watertight": float(tangled == 0 and border == 0),
    }


def face_components(faces: Int[ndarray, "f 3"]) -> Int[ndarray, " f"]:
    """Return the index of the connected part, joined by edges or corners, that holds each face."""
    used, index = np.unique(faces, return_inverse=True)
    index = index.reshape(-1, 3)
    pairs = np.concatenate([index[:, [0, 1]], index[:, [1, 2]]])
    graph = coo_array(
        (np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(len(used), len(used))
    )
    if not len(used):
        return np.zeros(0, dtype=np.int64)
    _, component = connected_components(graph, directed=False)
    return component[index[:, 0]].astype(np.int64)


def self_intersecting_faces(
    vertices: Float[ndarray, "n 3"], faces: Int[ndarray, "f 3"]
) -> Int[ndarray, " k"]:
    """Return the indices of faces that meet another outside of the corners that both have.

    libigl's tree of boxes and Shewchuk's exact predicates; touching counts. Faces of equal corners
    must be left out.
    """
    if not len(faces):
        return np.zeros(0, dtype=np.int64)
    corners, triangles = np.ascontiguousarray(vertices), np.ascontiguousarray(faces, np.int64)
    _, pairs, _ = igl.predicates.find_self_intersections(corners, triangles)
    return np.unique(pairs).astype(np.int64)  # of the type long long


def _count_pinched(faces: Int[ndarray, "f 3"], edges: Int[ndarray, "f 3"]) -> int:
    """Return the number of vertices whose faces hang together by the vertex alone.

    Args:
        faces: vertex indices.
        edges: index of each face's edges, from corner 0 to 1, 1 to 2 and 2 to 0.
    """
    if not len(faces):
        return 0
    # Both ends of every edge are nodes; a face ties the two that meet in each of its corners.
    falling = faces > np.roll(faces, -1, axis=1)
    start, end = 2 * edges + falling, 2 * edges + ~falling
    ties = (start.reshape(-1), np.roll(end, 1, axis=1).reshape(-1))
    count = 2 * (int(edges.max()) + 1)
    graph = coo_array((np.ones(len(ties[0]), dtype=bool), ties), shape=(count, count))
    _, fan = connected_components(graph, directed=False)
    fans = np.unique(np.stack([fan[start].reshape(-1), faces.reshape(-1)], axis=1), axis=0)
    return int((np.bincount(fans[:, 1]) > 1).sum())
