"""Edges and corners of what is extracted from a field, and from images."""

import itertools
from typing import Any

import igl
import numpy as np
import pytest
import torch
import trimesh
from analytic import ORTHO6, flat_colored, observe
from scipy.spatial.transform import Rotation

from modules.geometry.decimation import decimate
from modules.geometry.isosurface import extract_isosurface
from modules.geometry.sharp_features import gradient_normals
from modules.metrics.mesh_quality import mesh_quality
from modules.pipelines import reconstruction

CELLS = 48
CELL = 1.08 / CELLS
HALF = 0.25
NO_POINTS = np.zeros((0, 3))
TURN = Rotation.from_euler("xyz", [20, 35, 50], degrees=True).as_matrix()

CORNERS = HALF * np.array(list(itertools.product((-1.0, 1.0), repeat=3))) @ TURN.T


def cube(points: np.ndarray) -> np.ndarray:
    beyond = np.abs(points @ TURN) - HALF
    return np.linalg.norm(np.maximum(beyond, 0.0), axis=1) + np.minimum(beyond.max(axis=1), 0.0)


def ball(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points, axis=1) - 0.45


def edge(reach: float = HALF) -> np.ndarray:
    """Return points on an edge of the cube, up to so far from its middle."""
    along = np.linspace(-reach, reach, 101)
    return np.stack([along, np.full(101, HALF), np.full(101, HALF)], axis=1) @ TURN.T


def away(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    return np.sqrt(igl.point_mesh_squared_distance(points, vertices, faces.astype(np.int64))[0])


def is_sound(vertices: np.ndarray, faces: np.ndarray) -> bool:
    quality = mesh_quality(vertices, faces)
    return quality["watertight"] == quality["manifold"] == 1.0


@pytest.mark.parametrize("num_faces", [None, 500])
def test_edges_and_corners_are_sharper_than_marching_cubes_cuts_them(num_faces: int | None):
    found = []
    for sharp in (False, True):
        mesh = extract_isosurface(cube, CELLS, NO_POINTS, sharp=sharp)
        vertices, faces = decimate(*mesh, num_faces or len(mesh[1]))
        assert is_sound(vertices, faces)
        found.append((away(edge(), vertices, faces), away(CORNERS, vertices, faces)))
    (cut_edge, cut_corners), (edge_kept, corners_kept) = found
    assert edge_kept.mean() < 0.4 * cut_edge.mean()
    assert corners_kept.mean() < 0.6 * cut_corners.mean()


def test_grooves_are_as_sharp_as_ridges():
    """The cube is a hole in a ball, whose normals point into it."""
    mesh = extract_isosurface(lambda p: np.maximum(ball(p), -cube(p)), CELLS, NO_POINTS)
    assert is_sound(*mesh)
    assert away(edge(0.2), *mesh).mean() < 0.1 * CELL


def test_a_smooth_surface_is_left_to_marching_cubes():
    sharp = extract_isosurface(ball, CELLS, NO_POINTS, sharp=True)
    plain = extract_isosurface(ball, CELLS, NO_POINTS, sharp=False)
    for got, wanted in zip(sharp, plain, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_normals_follow_the_gradient_and_are_zero_where_there_is_none():
    points = np.array([[0.4, 0.0, 0.0], [0.1, -0.2, 0.3]])
    radial = points / np.linalg.norm(points, axis=1, keepdims=True)
    np.testing.assert_allclose(gradient_normals(ball, points, 1e-3), radial, atol=2e-3)
    assert not gradient_normals(lambda p: np.full(len(p), 0.05), points, 1e-3).any()


@pytest.mark.parametrize(
    ("noise", "cells", "expected"), [(0.0, CELLS, True), (0.02, CELLS, False), (0.0, 96, False)]
)
def test_only_images_that_agree_and_are_finer_than_the_grid_give_sharp_edges(
    noise: float, cells: int, expected: bool, monkeypatch: pytest.MonkeyPatch
):
    body = trimesh.creation.box(extents=[2 * HALF] * 3)
    body.apply_transform(trimesh.transformations.euler_matrix(0.3, 0.5, 0.2))
    images, hit = observe(flat_colored(body), 64)
    images[2] += noise * np.random.default_rng(0).standard_normal(images[2].shape).astype("f4")
    asked = []

    def extract(*arguments: Any, sharp: bool, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        asked.append(sharp)
        return extract_isosurface(*arguments, sharp=sharp, **options)

    monkeypatch.setattr(reconstruction, "extract_isosurface", extract)
    reconstruct = reconstruction.Reconstructor.classical()
    mesh = reconstruct(
        torch.from_numpy(images), ORTHO6, torch.from_numpy(hit), grid=cells, texture_px=64
    )
    assert asked == [expected]
    if expected:
        normals = body.face_normals[body.face_adjacency]
        bent = np.abs((normals[:, 0] * normals[:, 1]).sum(axis=1)) < 0.5
        ends = body.vertices[body.face_adjacency_edges[bent]]
        points = ends[:, :1] + np.linspace(0, 1, 20)[:, None] * np.diff(ends, axis=1)
        assert away(points.reshape(-1, 3), mesh.vertices, mesh.faces).mean() < 0.15 * CELL
