"""The fit moves a mesh towards what exact images show, and away from nothing that is right."""

import numpy as np
import pytest
import trimesh
from analytic import ORTHO6, colored, flat_colored, observe, sphere

from data_pipeline.contract import UserError
from modules.geometry.fit import MAX_STEPS, fit_vertices
from modules.geometry.fit_equations import area_vectors, disagreement
from modules.geometry.lift import Observation, lift


def seen(mesh, side: int = 64) -> Observation:
    images, hit = observe(mesh, side)
    return lift(images, ORTHO6, hit)


def ball(subdivisions: int = 4) -> tuple[np.ndarray, np.ndarray]:
    body = trimesh.creation.icosphere(subdivisions=subdivisions, radius=0.4)
    return np.asarray(body.vertices), np.asarray(body.faces, np.int64)


def bumpy() -> tuple[np.ndarray, np.ndarray]:
    """A ball with bumps of .008, nearly half a pixel of 64."""
    vertices, faces = ball()
    bumps = np.prod(np.sin(20.0 * vertices), axis=1, keepdims=True)
    return vertices * (1.0 + 0.08 * bumps), faces


def off_radius(vertices: np.ndarray) -> np.ndarray:
    return np.abs(np.linalg.norm(vertices, axis=1) - 0.4)


def off_normal_deg(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Return the mean angle between a ball's faces and its radii."""
    normal, centre = area_vectors(vertices, faces), vertices[faces].mean(axis=1)
    length = np.linalg.norm(normal, axis=1) * np.linalg.norm(centre, axis=1)
    return float(np.degrees(np.arccos((normal * centre).sum(axis=1) / length)).mean())


def test_exact_images_pull_a_bumpy_ball_onto_the_ball():
    vertices, faces = bumpy()
    done = []
    fitted = fit_vertices(vertices, faces, seen(sphere()), 10, progress=lambda: done.append(1))
    assert len(done) == 10
    assert off_radius(fitted).mean() < 0.25 * off_radius(vertices).mean()
    assert off_normal_deg(fitted, faces) < 0.5 * off_normal_deg(vertices, faces)


def test_a_mesh_of_the_wrong_width_meets_the_outlines():
    vertices, faces = ball(3)
    observation = seen(sphere())
    wide = vertices * 1.05
    fitted = fit_vertices(wide, faces, observation, 10)
    assert np.linalg.norm(fitted, axis=1).max() < 0.41
    narrow = fit_vertices(vertices * 0.95, faces, observation, 10)
    assert np.linalg.norm(narrow, axis=1).max() > 0.395


def ball_at_depths_off_by(off: np.ndarray) -> Observation:
    """Lift images of the ball whose depths are wrong by `off` (v h w), in world units."""
    images, hit = observe(sphere(), 64)
    for view, camera in enumerate(ORTHO6):
        images[2, view] -= 2.0 * off[view] * camera.matrix[:3, 2, None, None]
    return lift(images, ORTHO6, hit)


def test_a_view_that_contradicts_the_others_is_not_believed():
    off = np.zeros((6, 64, 64))
    off[0] = 0.15  # nine pixels behind
    vertices, faces = bumpy()
    fitted = fit_vertices(vertices, faces, ball_at_depths_off_by(off), 10)
    assert off_radius(fitted).mean() < 0.5 * off_radius(vertices).mean()
    assert off_radius(fitted).max() < 1.2 * off_radius(vertices).max()


def test_noisy_depths_do_not_move_the_mesh_and_normals_mend_its_slopes():
    off = np.random.default_rng(0).normal(0.0, 0.03, (6, 64, 64))
    vertices, faces = bumpy()
    fitted = fit_vertices(vertices, faces, ball_at_depths_off_by(off), 10)
    assert off_normal_deg(fitted, faces) < 0.4 * off_normal_deg(vertices, faces)
    assert off_radius(fitted).mean() < 0.005


def test_disagreement_is_that_of_the_views():
    exact = disagreement(ball_at_depths_off_by(np.zeros((6, 64, 64))))
    off = np.zeros((6, 64, 64))
    off[::2] = 0.02
    assert exact < 0.0005
    assert 0.005 < disagreement(ball_at_depths_off_by(off)) < 0.02
    one = observe(sphere(), 32)
    assert disagreement(lift(one[0][:, :1], ORTHO6[:1], one[1][:1])) == 0.0


def test_what_no_view_sees_stays_where_it_was():
    """A ball inside a ball: the inner one is hidden."""
    outer, inner = ball(3), ball(2)
    vertices = np.concatenate([outer[0] * 1.01, inner[0] * 0.3])
    faces = np.concatenate([outer[1], inner[1] + len(outer[0])])
    fitted = fit_vertices(vertices, faces, seen(sphere()), 5)
    np.testing.assert_allclose(fitted[len(outer[0]) :], vertices[len(outer[0]) :], atol=1e-6)


def test_the_walls_of_a_thin_plate_do_not_meet():
    """Both sides are asked to lie in one plane; they may come close and no closer."""
    plate = trimesh.creation.box(extents=(0.8, 1e-4, 0.8))
    observation = seen(flat_colored(plate))
    start = trimesh.creation.box(extents=(0.8, 0.03, 0.8))
    for _ in range(4):
        start = start.subdivide()
    vertices, faces = np.asarray(start.vertices), np.asarray(start.faces, np.int64)
    fitted = fit_vertices(vertices, faces, observation, 20)
    order = np.lexsort((vertices[:, 2].round(6), vertices[:, 0].round(6)))
    front, back = (order[np.abs(vertices[order, 1] - y) < 1e-6] for y in (-0.015, 0.015))
    gap = fitted[back, 1] - fitted[front, 1]
    assert gap.min() > 0.25 * observation.spacing
    assert np.median(gap) < 0.4 * observation.spacing
    turned = (area_vectors(vertices, faces) * area_vectors(fitted, faces)).sum(axis=1) < 0
    assert not turned.any()


def test_no_step_changes_nothing_and_too_many_or_fewer_are_refused():
    vertices, faces = ball(2)
    observation = seen(sphere(), 16)
    assert np.array_equal(fit_vertices(vertices, faces, observation, 0), vertices)
    for steps in (-1, MAX_STEPS + 1):
        with pytest.raises(UserError, match=f"refine_steps={steps} must be"):
            fit_vertices(vertices, faces, observation, steps)


def test_images_that_show_nothing_of_the_mesh_leave_it_be():
    small = colored(trimesh.creation.icosphere(radius=0.02).apply_translation([0.4, 0.4, 0.4]))
    vertices, faces = ball(2)
    fitted = fit_vertices(vertices * 0.2, faces, seen(small, 32), 3)
    assert np.abs(fitted - vertices * 0.2).max() < 0.05
