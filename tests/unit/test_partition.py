"""Parts of a mesh: every face in one, even in size, parted where few edges are."""

import numpy as np
import pytest
import trimesh

from modules.geometry.partition import partition


def cut_length(vertices: np.ndarray, faces: np.ndarray, parts: list[np.ndarray]) -> float:
    """Return the length of the edges between parts of a closed mesh."""
    body = trimesh.Trimesh(vertices, faces, process=False)
    part = np.empty(len(faces), dtype=np.int64)
    for number, chosen in enumerate(parts):
        part[chosen] = number
    apart = np.diff(part[body.face_adjacency], axis=1)[:, 0] != 0
    ends = vertices[body.face_adjacency_edges[apart]]
    return float(np.linalg.norm(np.diff(ends, axis=1), axis=-1).sum())


def assert_parted(faces: np.ndarray, parts: list[np.ndarray]) -> None:
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(faces)))


def test_parts_are_even_and_hold_every_face_once():
    ball = trimesh.creation.icosphere(subdivisions=4)
    faces = np.asarray(ball.faces, np.int64)
    assert len(partition(ball.vertices, faces, len(faces))) == 1
    parts = partition(ball.vertices, faces, 700)
    assert_parted(faces, parts)
    size = np.array([len(part) for part in parts])
    assert size.max() <= 700
    assert size.min() >= 0.4 * 700


def test_bodies_that_do_not_touch_are_not_cut():
    ball = trimesh.creation.icosphere(subdivisions=3)
    # Their boxes overlap.
    vertices = np.concatenate([ball.vertices, ball.vertices + np.array([1.9, 1.9, 0.0])])
    faces = np.concatenate([ball.faces, ball.faces + len(ball.vertices)]).astype(np.int64)
    parts = partition(vertices, faces, len(faces) // 2)
    assert len(parts) == 2
    assert cut_length(vertices, faces, parts) == 0.0


def test_a_slanting_bar_is_cut_across():
    bar = trimesh.creation.box((8.0, 1.0, 1.0)).subdivide().subdivide().subdivide().subdivide()
    turn = trimesh.transformations.rotation_matrix(np.pi / 4, [0.0, 0.0, 1.0])
    bar.apply_transform(turn)
    faces = np.asarray(bar.faces, np.int64)
    parts = partition(bar.vertices, faces, int(0.36 * len(faces)))
    assert len(parts) == 4
    assert cut_length(bar.vertices, faces, parts) < 1.3 * 3 * 4.0  # cut straight: 3 by 4


@pytest.mark.parametrize("fault", ["none", "loose", "not a number", "one point", "thrice"])
def test_any_mesh_is_parted(fault: str):
    body = trimesh.creation.icosphere(subdivisions=1)
    vertices, faces = np.asarray(body.vertices).copy(), np.asarray(body.faces, np.int64)
    if fault == "none":
        faces = faces[:0]
    elif fault == "loose":
        vertices, faces = vertices[faces].reshape(-1, 3), np.arange(faces.size).reshape(-1, 3)
    elif fault == "not a number":
        vertices[::3] = np.nan
    elif fault == "one point":
        vertices[:] = 0.0
    else:
        faces = np.concatenate([faces] * 3)
    assert_parted(faces, partition(vertices, faces, 7))
