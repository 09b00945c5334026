import numpy as np
import trimesh
from analytic import ORTHO6, blurred, flat_colored, observe, sphere, to_images

from data_pipeline.contract import view_layout
from modules.geometry.classical_field import ClassicalField
from modules.geometry.lift import HitRule, fill_background, find_hit, lift
from modules.geometry.rasterize import render_mesh


def test_lifted_points_lie_on_the_surface_with_its_normals():
    for layout in ("ortho6", "pinhole4"):
        cameras = view_layout(layout)
        views = render_mesh(sphere(), cameras, 48)
        observation = lift(to_images(views), cameras, views.hit)
        radius = np.linalg.norm(observation.position, axis=1)
        assert np.abs(radius - 0.4).max() < 2e-3
        unit = observation.position / radius[:, None]
        assert (unit * observation.normal).sum(axis=1).min() > 0.999
        np.testing.assert_allclose(np.linalg.norm(observation.normal, axis=1), 1.0)


def test_of_a_coord_only_the_depth_is_used():
    images, hit = observe(sphere(), 32)
    spoilt = images.copy()
    spoilt[2, 0, 0] += 0.3 * hit[0]  # view 0 looks along +Y: x and z are known from the pixel
    spoilt[2, 0, 2] -= 0.2 * hit[0]
    clean, dirty = lift(images, ORTHO6, hit), lift(spoilt, ORTHO6, hit)
    np.testing.assert_allclose(clean.position, dirty.position, atol=1e-6)


def test_without_hit_the_rule_finds_almost_the_same_foreground():
    images, hit = observe(sphere(), 64)
    found = lift(images, ORTHO6).hit
    assert (found & ~hit).sum() == 0
    assert found.sum() > 0.97 * hit.sum()


def test_pixels_whose_coord_belongs_elsewhere_are_no_foreground():
    images, hit = observe(sphere(), 64)
    wrong = images.copy()
    wrong[2, 0, 0, 20:30] += 0.5 * hit[0, 20:30]  # a quarter of a world unit aside
    assert not lift(wrong, ORTHO6).hit[0, 20:30].any()


def test_holes_and_doubtful_pixels_of_made_images_are_not_seen_through():
    images, hit = observe(sphere(), 64)
    images[1, 0, :, 32, 32] = 0.0  # a speck without a normal, as decoders leave them
    images[1, 0, :, 4:8, 30:34] = 0.3 / np.sqrt(3)  # too short for a surface, too long for nothing
    images[2, 0, 0, 20:30] += 0.5 * hit[0, 20:30]
    observation = lift(images, ORTHO6)
    for row, column in ((32, 32), (5, 31), (25, 32)):
        assert not observation.hit[0, row, column]
        assert observation.depth[0, row, column] == -np.inf
    assert observation.depth[0, 2, 2] == np.inf
    field = ClassicalField(observation)
    assert (field.sample(np.array([[0.0, 0.0, 0.0], [0.0, 0.3, 0.0]])).distance < 0).all()
    assert field.noise < observation.spacing


def test_blurred_outlines_are_neither_lifted_nor_seen_through_where_the_object_is():
    images, hit = observe(sphere(), 64)
    observation = lift(blurred(images), ORTHO6)
    assert observation.hit.sum() < 0.97 * hit.sum()
    np.testing.assert_array_equal(observation.silhouette, hit)
    exact = lift(images, ORTHO6, hit)
    np.testing.assert_array_equal(exact.silhouette, hit)


def test_thin_legs_and_blotches_are_not_seen_through_for_their_short_normals():
    parts = [trimesh.creation.box((0.66, 0.66, 0.08))]
    for x, y in ((-0.3, -0.3), (-0.3, 0.3), (0.3, -0.3), (0.3, 0.3)):
        leg = trimesh.creation.box((0.035, 0.035, 0.5))
        leg.apply_translation([x, y, -0.3])
        parts.append(leg)
    table = trimesh.util.concatenate(parts)
    assert isinstance(table, trimesh.Trimesh)
    images, hit = observe(flat_colored(table), 64)
    made = blurred(images, 1.0)
    short = hit & (np.linalg.norm(made[1], axis=1) < 0.5)
    assert short.sum() > 10  # at the edges of the legs
    assert not np.isposinf(lift(made, ORTHO6).depth[hit]).any()
    images, hit = observe(sphere(), 64)
    images[1, 0, :, 30:33, 30:33] *= 0.4
    assert not np.isposinf(lift(images, ORTHO6).depth[hit]).any()


def test_points_between_two_surfaces_are_dropped():
    depth = np.full((1, 9, 9), 1.0)
    depth[..., 5:] = 1.5
    depth[..., 4] = 1.25  # what a blurred step looks like
    centre = np.arange(9) + 0.5
    pixels = np.stack(np.meshgrid(centre, centre), axis=-1)[None]
    hit = find_hit(np.ones((1, 9, 9)), pixels, depth, np.zeros((1, 9, 9)), HitRule())
    assert not hit[..., 4].any()
    assert hit[..., [0, 1, 2, 3, 5, 6, 7, 8]].all()


def test_outlines_take_the_colour_of_the_inside():
    hit = np.zeros((1, 12, 12), bool)
    hit[:, 3:9, 3:9] = True
    image = np.where(hit[..., None], 0.2, 1.0) * np.ones(3)
    image[0, 3, 3:9] = 0.6  # anti-aliased against white
    assert (fill_background(image, hit) == 0.2).all()


def test_images_without_foreground_lift_to_nothing():
    images = np.zeros((3, 6, 3, 16, 16), np.float32)
    assert len(lift(images, ORTHO6).position) == 0


def test_a_box_lifts_to_its_six_faces():
    images, hit = observe(flat_colored(trimesh.creation.box(extents=(0.8, 0.6, 0.4))), 64)
    observation = lift(images, ORTHO6, hit)
    scaled = np.abs(observation.position) / [0.4, 0.3, 0.2]
    np.testing.assert_allclose(scaled.max(axis=1), 1.0, atol=1e-5)
