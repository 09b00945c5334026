from dataclasses import replace

import numpy as np
import pytest
import trimesh
from analytic import ORTHO6, blurred, bowl, flat_colored, observe, sphere, to_images
from scipy import ndimage

from modules.geometry.classical_field import ClassicalField
from modules.geometry.corruption import Corruption, corrupt
from modules.geometry.lift import Observation, lift
from modules.geometry.point_fusion import reliability
from modules.geometry.rasterize import render_mesh
from modules.geometry.view_alignment import _outline, align_views
from modules.geometry.view_noise import LARGEST_NOISE, estimate_noise

BOX = flat_colored(trimesh.creation.box(extents=(0.8, 0.5, 0.7)))
BODIES = {"sphere": sphere(), "box": BOX, "bowl": bowl()}


def spoilt(mesh, level: float) -> tuple[Observation, Observation]:
    """Return what spoilt and exact images show."""
    images, hit = observe(mesh, 64)
    settings = Corruption(clean_share=0, coord_noise=(level, level), drop_share=0, blur_px=0)
    found, mask, cameras = corrupt(images, hit, ORTHO6, settings, np.random.default_rng(3))
    np.testing.assert_array_equal(mask, hit)
    return lift(found, cameras, mask), lift(images, ORTHO6, hit)


def depth_error(observation: Observation, exact: Observation) -> float:
    inner = ndimage.binary_erosion(exact.hit, np.ones((1, 3, 3)))
    return float(np.median(np.abs(observation.depth[inner] - exact.depth[inner])))


@pytest.mark.parametrize("name", sorted(BODIES))
@pytest.mark.parametrize("level", [0.015, 0.04])
def test_depths_that_disagree_come_much_nearer_to_the_truth(name: str, level: float):
    observation, exact = spoilt(BODIES[name], level)
    aligned = align_views(observation, level)
    assert depth_error(aligned, exact) < 0.6 * depth_error(observation, exact)


@pytest.mark.parametrize("name", ["sphere", "bowl"])
@pytest.mark.parametrize("level", [0.005, 0.015, 0.04])
def test_the_noise_of_surface_that_two_views_see_is_estimated(name: str, level: float):
    assert 0.3 * level < estimate_noise(spoilt(BODIES[name], level)[0]) < 3.0 * level


def test_coords_that_miss_their_rays_are_noise_even_where_no_two_views_see_the_same():
    images, hit = observe(BOX, 64)
    assert estimate_noise(lift(images, ORTHO6, hit)) == 0.0
    images[2, 0, 0] += 2.0 * 0.02 * hit[0]  # across the front view's rays
    images[2, 4, 0] += 2.0 * 0.02 * hit[4]
    images[2, 5, 0] += 2.0 * 0.02 * hit[5]
    assert 0.005 < estimate_noise(lift(images, ORTHO6, hit)) < 0.02


def test_a_shifted_view_of_a_box_is_put_back_by_the_outlines_of_the_others():
    """No point of the front is seen by two views: the silhouettes alone tell where it is."""
    images, hit = observe(BOX, 64)
    images[2, 0, 1] += 2.0 * 0.04 * hit[0]  # the front view looks along +Y
    exact = lift(observe(BOX, 64)[0], ORTHO6, hit)
    aligned = align_views(lift(images, ORTHO6, hit), 0.02)
    front = hit[0]
    error = np.abs(aligned.depth[0][front] - exact.depth[0][front])
    assert np.median(error) < 0.75 * exact.spacing < 0.02


@pytest.mark.parametrize("name", sorted(BODIES))
def test_walls_are_drawn_to_outlines_not_to_the_pixels_beside_them_that_were_lifted(name: str):
    """Blur makes depths beside outlines unsound: taken for the outline, they draw walls inwards."""
    images, hit = observe(BODIES[name], 64)
    exact, made = lift(images, ORTHO6, hit), blurred(images)
    shifts = (0.02, -0.01, 0.015, -0.02, 0.01, -0.015)
    for view, (camera, shift) in enumerate(zip(ORTHO6, shifts, strict=True)):
        shown = np.linalg.norm(made[1, view], axis=0) > 0.3
        made[2, view] -= 2.0 * shift * camera.matrix[:3, 2, None, None] * shown
    observation = lift(made, ORTHO6)
    assert depth_error(observation, exact) > 0.5 * exact.spacing
    assert depth_error(align_views(observation, 0.02), exact) < 0.2 * exact.spacing


def test_what_lies_behind_its_frame_is_not_drawn_to_the_outline():
    parts = [trimesh.creation.box(extents=(0.8, 0.4, 0.8)).apply_translation([0.0, 0.03, 0.0])]
    for side in (-0.36, 0.36):
        for extents, place in (
            ((0.8, 0.06, 0.08), (0.0, -0.2, side)),
            ((0.08, 0.06, 0.64), (side, -0.2, 0.0)),
        ):
            parts.append(trimesh.creation.box(extents=extents).apply_translation(place))
    images, hit = observe(flat_colored(trimesh.util.concatenate(parts)), 64)
    exact = lift(images, ORTHO6, hit)
    images[2, 0, 1] -= 2.0 * 0.02 * hit[0]  # the front view sees the pane, 3.5 pixels behind
    aligned = align_views(lift(images, ORTHO6, hit), 0.02)
    error = np.abs(aligned.depth[0] - exact.depth[0])[hit[0]]
    assert np.median(error) < 0.1 * exact.spacing


def test_only_depths_change_and_points_stay_on_the_rays_of_their_pixels():
    observation, _ = spoilt(BODIES["bowl"], 0.02)
    aligned = align_views(observation, 0.02)
    np.testing.assert_array_equal(aligned.hit, observation.hit)
    np.testing.assert_array_equal(np.isinf(aligned.depth), np.isinf(observation.depth))
    for view, camera in enumerate(ORTHO6):
        own = aligned.view == view
        pixels, depth = camera.project(aligned.position[own], 64)
        row, column = np.nonzero(aligned.hit[view])
        np.testing.assert_allclose(pixels, np.stack([column, row], axis=1) + 0.5, atol=1e-9)
        np.testing.assert_allclose(depth, aligned.depth[view][aligned.hit[view]], atol=1e-9)


def test_the_field_of_exact_images_is_left_alone():
    images, hit = observe(bowl(), 64)
    observation = lift(images, ORTHO6, hit)
    field = ClassicalField(observation)
    assert field.noise == 0.0
    assert field.observation is observation


@pytest.mark.parametrize("pixels", [1, 2, 5])
def test_a_handful_of_points_of_a_view_or_two_is_no_obstacle(pixels: int):
    images, hit = observe(sphere(), 32)
    few = np.zeros_like(hit)
    few[0, 16, 15 : 15 + pixels] = True
    for chosen in (few, few | np.roll(few, 1, axis=0)):
        aligned = align_views(lift(images, ORTHO6, chosen), 0.03)
        assert np.isfinite(aligned.position).all()


def test_what_another_view_looks_through_counts_little_and_nothing_on_an_outline():
    images, hit = observe(sphere(), 64)
    exact = lift(images, ORTHO6, hit)
    weight = reliability(exact)
    assert ((weight > 0.09) & (weight <= 1.0)).mean() > 0.8
    images[2, 0, 1] -= 2.0 * 0.1 * hit[0]  # the front view comes to lie outside of the others'
    spoiled = lift(images, ORTHO6, hit)
    front = spoiled.view == 0
    toward = spoiled.normal[front] @ ORTHO6[0].matrix[:3, 2]
    facing = toward > 0.9
    assert np.median(reliability(spoiled)[front][facing]) < 0.1 < np.median(weight[front][facing])
    assert (reliability(spoiled)[front] == 0.0).any()


def test_an_exact_close_up_says_nothing_of_what_lies_outside_of_its_image():
    parts = [
        trimesh.creation.box(extents=(0.1, 0.1, 0.9)).apply_translation([-0.4, 0.0, 0.0]),
        trimesh.creation.box(extents=(0.9, 0.1, 0.1)).apply_translation([0.0, 0.0, -0.4]),
    ]
    shape = flat_colored(trimesh.util.concatenate(parts))
    moved = ORTHO6[0].matrix
    moved[:3, 3] += 0.2 * (moved[:3, 1] - moved[:3, 0])
    close_up = replace(ORTHO6[0], ortho_scale=0.65, camera_to_world=moved.tolist())
    cameras = [*ORTHO6, close_up]
    views = render_mesh(shape, cameras, 64)
    assert 0 < views.hit[6].sum() < views.hit[6].size
    observation = lift(to_images(views), cameras, views.hit)
    assert estimate_noise(observation) == 0.0


def test_one_view_that_is_far_off_does_not_melt_the_others():
    images, hit = observe(sphere(), 64)
    exact = lift(images, ORTHO6, hit)
    images[2, 0, 1] += 2.0 * 0.25 * hit[0]
    observation = lift(images, ORTHO6, hit)
    assert estimate_noise(observation) > 1.5 * LARGEST_NOISE
    field = ClassicalField(observation)
    assert field.noise == LARGEST_NOISE
    others = exact.position[exact.view > 0]
    assert np.median(np.abs(field.sample(others).distance)) < 0.28 * exact.spacing


def test_a_view_that_is_all_foreground_has_no_outline():
    hit, index = np.ones((16, 16), dtype=bool), np.arange(256).reshape(16, 16)
    assert _outline(hit, index, 0.1) is None
    hit[:, :8] = False
    index[:, :8] = -1
    outline = _outline(hit, index, 0.1)
    assert outline is not None
    assert ((outline.distance > 0) == ~hit).all()
