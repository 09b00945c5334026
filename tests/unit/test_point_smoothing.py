from dataclasses import replace

import numpy as np
import pytest
import trimesh
from analytic import ORTHO6, bowl, flat_colored, observe, sphere
from scipy import ndimage

from modules.geometry.classical_field import ClassicalField
from modules.geometry.corruption import Corruption, corrupt
from modules.geometry.lift import Observation, lift
from modules.geometry.point_smoothing import smooth_points
from modules.geometry.view_noise import errs_at_random, estimate_noise

BOX = flat_colored(trimesh.creation.box(extents=(0.8, 0.5, 0.7)))
BODIES = {"sphere": sphere(), "box": BOX, "bowl": bowl()}
ERROR = 0.005  # world units: a third of a pixel


def scattered(mesh, window: float = 0.0) -> tuple[Observation, Observation]:
    """Return what images show whose coords and normals are off at random, and the exact ones.

    Args:
        mesh: the body.
        window: errors are shared within so many pixels.
    """
    images, hit = observe(mesh, 64)
    noisy, rng = images.copy(), np.random.default_rng(4)
    for modality, size in ((1, 0.12), (2, 2.0 * ERROR)):
        error = rng.normal(0.0, 1.0, images[modality].shape)
        if window:
            error = ndimage.gaussian_filter(error, (0, 0, window, window))
            error /= error.std()
        noisy[modality] += size * error * hit[:, None]
    return lift(noisy, ORTHO6, hit), lift(images, ORTHO6, hit)


def depth_error(observation: Observation, exact: Observation) -> float:
    return float(np.median(np.abs(observation.depth[exact.hit] - exact.depth[exact.hit])))


@pytest.mark.parametrize("name", sorted(BODIES))
def test_random_errors_of_depths_and_normals_are_halved(name: str):
    observation, exact = scattered(BODIES[name])
    smooth = smooth_points(observation)
    assert depth_error(smooth, exact) < 0.5 * depth_error(observation, exact)
    before, after = ((each.normal * exact.normal).sum(axis=1) for each in (observation, smooth))
    assert np.median(np.arccos(np.clip(after, -1, 1))) < 0.5 * np.median(np.arccos(before))


def test_a_ball_does_not_shrink():
    exact = scattered(sphere())[1]
    smooth = smooth_points(exact)
    radius = [float(np.linalg.norm(each.position, axis=1).mean()) for each in (exact, smooth)]
    assert abs(radius[1] - radius[0]) < 0.01 * exact.spacing


def test_the_edges_of_a_box_stay():
    exact = scattered(BOX)[1]
    smooth = smooth_points(exact)
    np.testing.assert_allclose(smooth.depth, exact.depth, atol=0.03 * exact.spacing)
    assert (smooth.normal * exact.normal).sum(axis=1).min() > 0.99


def test_points_whose_coords_miss_their_rays_the_most_count_the_least():
    exact = scattered(BOX)[1]
    off = np.random.default_rng(5).random(len(exact.position)) < 0.2
    depth = exact.depth.copy()
    depth[exact.hit] += np.where(off, 0.02, 0.0)
    along = (depth - np.where(np.isfinite(exact.depth), exact.depth, 0.0))[exact.hit]
    axes = -np.stack([camera.matrix[:3, 2] for camera in ORTHO6])[exact.view]
    wrong = replace(
        exact, depth=depth, position=exact.position + axes * along[:, None] * off[:, None]
    )
    told = replace(wrong, misplaced=np.where(off, 0.02, 0.001))
    untold = replace(wrong, misplaced=np.full(len(off), 0.001))
    sound = np.zeros_like(exact.hit)
    sound[exact.hit] = ~off
    error = [
        np.abs(smooth_points(each).depth[sound] - exact.depth[sound]).mean()
        for each in (told, untold)
    ]
    assert error[0] < 0.3 * error[1]


def test_random_errors_are_told_from_those_that_neighbours_share():
    random, exact = scattered(sphere())
    shared = scattered(sphere(), window=5.0)[0]
    assert errs_at_random(random)
    assert not errs_at_random(shared)
    assert not errs_at_random(exact)
    assert random.drift < 0.5 * shared.drift
    assert exact.drift < 1e-4 * exact.spacing


def test_views_with_random_errors_are_smoothed_and_not_aligned_by_bad_normals_and_outlines():
    """As a small autoencoder decodes: coords to a third of a pixel, normals and outlines off."""
    images, hit = observe(sphere(), 64)
    settings = Corruption(clean_share=0, coord_noise=(0.03, 0.03), drop_share=0, blur_px=1.5)
    found, mask, cameras = corrupt(images, hit, ORTHO6, settings, np.random.default_rng(3))
    both = hit & mask
    error = np.random.default_rng(4).choice([-0.005, 0.005], images[2].shape)
    found[2] = np.where(both[:, None], images[2] + 2.0 * error, found[2])
    observation, exact = lift(found, cameras, both), lift(images, ORTHO6, both)
    field = ClassicalField(observation)
    assert estimate_noise(observation) < 0.25 * observation.spacing
    assert depth_error(field.observation, exact) < 0.75 * depth_error(observation, exact)
    # It is the rays that tell: points off each other's planes would call for an alignment.
    on_rays = replace(observation, misplaced=np.zeros(len(observation.position)))
    assert estimate_noise(on_rays) > 0.25 * observation.spacing


@pytest.mark.parametrize("pixels", [1, 2, 5])
def test_a_handful_of_points_is_no_obstacle(pixels: int):
    images, hit = observe(sphere(), 32)
    few = np.zeros_like(hit)
    few[0, 16, 15 : 15 + pixels] = True
    images[2] += 0.02 * np.random.default_rng(6).normal(size=images[2].shape)
    smooth = smooth_points(lift(images, ORTHO6, few))
    assert np.isfinite(smooth.position).all()
    np.testing.assert_allclose(np.linalg.norm(smooth.normal, axis=1), 1.0, atol=1e-6)
