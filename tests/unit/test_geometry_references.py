"""Figures of geometry against a second, slow or independent implementation of the same formula."""

import igl
import numpy as np
import pytest
import trimesh
from analytic import colored

from modules.metrics.geometry import MeshSurface, compare_surfaces, sphere_directions
from modules.metrics.volume import volume_iou


def bumpy(seed: int) -> trimesh.Trimesh:
    """A closed body without symmetry, that crosses itself here and there."""
    ball = trimesh.creation.icosphere(2, 0.4)
    wave = np.random.default_rng(seed).normal(size=(3, 3))
    ball.vertices *= 1.0 + 0.15 * np.sin(6.0 * ball.vertices @ wave).sum(axis=1, keepdims=True)
    return ball


def surface_of(mesh: trimesh.Trimesh) -> MeshSurface:
    return MeshSurface(np.array(mesh.vertices), np.array(mesh.faces))


def slow_nearest(mesh: trimesh.Trimesh, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance to every triangle, and the nearest of them; trimesh's own way needs rtree."""
    away = np.empty((len(mesh.faces), len(points)))
    for triangle, row in zip(mesh.triangles, away, strict=True):
        repeated = np.broadcast_to(triangle, (len(points), 3, 3))
        nearest = trimesh.triangles.closest_point(repeated, points)
        row[:] = np.linalg.norm(nearest - points, axis=1)
    return away.min(axis=0), away.argmin(axis=0)


def slow_blocked(mesh: trimesh.Trimesh, origins: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Möller and Trumbore (1997) for every ray and every triangle."""
    a, b, c = (mesh.triangles[:, k][None] for k in range(3))
    normal = np.cross(direction, c - a)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 1.0 / (normal * (b - a)).sum(axis=2)
        away = origins[:, None] - a
        u = scale * (away * normal).sum(axis=2)
        turned = np.cross(away, b - a)
        v, t = scale * (turned @ direction), scale * (turned * (c - a)).sum(axis=2)
        return ((u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0)).any(axis=1)


def test_distances_f_scores_and_normals_equal_those_of_every_point_to_every_face():
    meshes = bumpy(0), bumpy(1)
    surfaces = surface_of(meshes[0]), surface_of(meshes[1])
    figures = compare_surfaces(*surfaces, num_samples=800, seed=5)
    samples = surfaces[0].sample(800, 5), surfaces[1].sample(800, 6)
    distances, cosines = [], []
    for own, other in ((0, 1), (1, 0)):
        away, face = slow_nearest(meshes[other], samples[own].points)
        distances.append(away)
        cosines.append((samples[own].normals * meshes[other].face_normals[face]).sum(axis=1))
    precision, recall = ((away <= 0.05).mean() for away in distances)
    expected = {
        "chamfer_l1": np.mean([away.mean() for away in distances]),
        "chamfer_l2": np.mean([(away**2).mean() for away in distances]),
        "precision_0.05": precision,
        "recall_0.05": recall,
        "f_score_0.05": 2.0 / (1.0 / precision + 1.0 / recall),
    }
    for key, value in expected.items():
        assert figures[key] == pytest.approx(value, abs=1e-9), key
    # on an edge either face's normal may be taken, so a few cosines differ
    consistency = np.mean([np.abs(cosine).mean() for cosine in cosines])
    assert figures["normal_consistency"] == pytest.approx(consistency, abs=2e-3)
    flipped = np.mean([(cosine < -0.5).mean() for cosine in cosines])
    assert figures["flipped_normals"] == pytest.approx(flipped, abs=2e-3)


def test_samples_are_spread_by_area():
    mesh = trimesh.creation.box((1.0, 0.5, 0.1))
    face = surface_of(mesh).sample(50_000, 0).face
    assert face is not None
    share = np.bincount(face, minlength=12) / 50_000
    assert share == pytest.approx(np.asarray(mesh.area_faces / mesh.area), abs=0.006)


def test_outer_visibility_equals_that_of_every_ray_with_every_face():
    shell, inner = trimesh.creation.box((1, 1, 1)), trimesh.creation.icosphere(1, 0.3)
    opened = trimesh.Trimesh(shell.vertices, shell.faces[:-2])  # a box without a lid
    mesh = trimesh.util.concatenate([opened, inner])
    surface = surface_of(mesh)
    samples = surface.sample(1000, 0)
    expected = np.zeros(1000, dtype=bool)
    for direction in sphere_directions(64):
        facing = np.abs(samples.normals @ direction) > 0.1
        blocked = slow_blocked(mesh, samples.points + 1e-4 * direction, direction)
        expected |= facing & ~blocked
    assert 0.1 < expected.mean() < 0.95
    assert (surface.visible_from_outside(samples) == expected).mean() > 0.998


def test_volume_overlap_equals_the_share_of_points_by_winding_number():
    meshes = bumpy(0), bumpy(1)
    points = np.random.default_rng(0).uniform(-0.7, 0.7, (40_000, 3))
    inside = [
        np.abs(igl.winding_number(np.array(m.vertices), np.array(m.faces, np.int64), points)) > 0.5
        for m in meshes
    ]
    expected = (inside[0] & inside[1]).sum() / (inside[0] | inside[1]).sum()
    assert volume_iou(*map(colored, meshes)) == pytest.approx(expected, abs=0.01)


def test_volume_overlap_of_bodies_whose_volumes_are_known():
    large, small = trimesh.creation.icosphere(4, 0.5), trimesh.creation.icosphere(4, 0.4)
    hollow = small.copy()
    hollow.invert()
    shell = trimesh.util.concatenate([large, hollow])
    share = small.volume / large.volume
    assert volume_iou(colored(small), colored(large)) == pytest.approx(share, abs=1e-3)
    assert volume_iou(colored(shell), colored(large)) == pytest.approx(1.0 - share, abs=1e-3)
    assert volume_iou(colored(shell), colored(small)) == pytest.approx(0.0, abs=1e-9)
    inverted = large.copy()
    inverted.invert()
    assert volume_iou(colored(inverted), colored(large)) == 1.0
    for axis in range(3):  # plates thinner than a column, along each axis
        size = np.where(np.arange(3) == axis, 0.002, 1.0)
        plate, moved = trimesh.creation.box(size), trimesh.creation.box(size)
        moved.apply_translation(np.roll([0.5, 0.0, 0.0], axis + 1))
        assert volume_iou(colored(moved), colored(plate)) == pytest.approx(1 / 3, abs=4e-3)


def test_spurious_parts_are_large_and_far():
    body = trimesh.creation.icosphere(3, 0.3)
    blobs = {
        "far and large": (trimesh.creation.icosphere(2, 0.05), 0.45, 1),
        "near and large": (trimesh.creation.icosphere(2, 0.05), 0.32, 0),
        "a speck": (trimesh.creation.icosphere(2, 0.02), 0.45, 0),
    }
    for name, (blob, distance, expected) in blobs.items():
        blob.apply_translation([distance, 0.0, 0.0])
        both = trimesh.util.concatenate([body, blob])
        figures = compare_surfaces(surface_of(both), surface_of(body), num_samples=5000)
        assert figures["spurious_components"] == expected, name
