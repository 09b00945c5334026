import numpy as np
import pytest
import trimesh
from analytic import ORTHO6, bowl, flat_colored, observe, sphere

from modules.geometry.classical_field import ClassicalField, ClassicalSettings
from modules.geometry.corruption import Corruption, corrupt
from modules.geometry.isosurface import extract_isosurface, least_thickness
from modules.geometry.lift import lift
from modules.geometry.view_noise import estimate_noise


def field_of(mesh, resolution_px: int = 64) -> ClassicalField:
    images, hit = observe(mesh, resolution_px)
    return ClassicalField(lift(images, ORTHO6, hit))


def directions(count: int) -> np.ndarray:
    vectors = np.random.default_rng(0).standard_normal((count, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_near_a_sphere_distances_are_exact_to_a_tenth_of_a_pixel():
    field = field_of(sphere())
    for offset in (-0.01, -0.003, 0.0, 0.003, 0.01):
        distance = field.sample(directions(2000) * (0.4 + offset)).distance
        error = np.abs(distance - offset)
        assert np.median(error) < 0.1 * 1.1 / 64, offset
        assert np.percentile(error, 99) < 0.5 * 1.1 / 64, offset


def test_far_from_the_surface_the_sign_is_right_and_the_distance_is_truncated():
    field = field_of(sphere())
    points = np.random.default_rng(1).uniform(-0.54, 0.54, (4000, 3))
    radius = np.linalg.norm(points, axis=1)
    far = np.abs(radius - 0.4) > 0.06
    np.testing.assert_allclose(
        field.sample(points[far]).distance, np.sign(radius[far] - 0.4) * 0.05, atol=1e-9
    )


def test_the_inside_of_a_bowl_stays_open():
    sample = field_of(bowl()).sample(
        np.array([[0.0, 0.0, -0.2], [0.2, 0.1, -0.1], [0.0, 0.0, -0.42], [0.0, 0.0, 0.1]])
    )
    np.testing.assert_array_equal(sample.distance > 0, [True, True, False, True])


def test_a_wall_that_no_view_sees_ends_where_the_view_beyond_it_begins():
    """A box with a shaft: its vertical inner walls lie along every view's rays."""
    outer = trimesh.creation.box(extents=(0.8, 0.8, 0.8))
    shaft = trimesh.creation.box(extents=(0.4, 0.4, 0.6))
    shaft.apply_translation([0, 0, 0.1])
    shaft.invert()
    lid = np.abs(outer.triangles_center[:, 2] - 0.4) < 1e-6
    opening = np.abs(shaft.triangles_center[:, 2] - 0.4) < 1e-6
    outer.update_faces(~lid)
    shaft.update_faces(~opening)
    ring = trimesh.creation.annulus(r_min=0.2, r_max=0.4, height=1e-3, sections=4)
    ring.apply_transform(trimesh.transformations.rotation_matrix(np.pi / 4, [0, 0, 1]))
    ring.apply_scale([2**0.5, 2**0.5, 1])
    ring.apply_translation([0, 0, 0.4 - 5e-4])
    field = field_of(flat_colored(trimesh.util.concatenate([outer, shaft, ring])))
    x = np.linspace(0.1, 0.3, 41)
    inside = field.sample(np.stack([x, 0 * x, 0 * x + 0.1], axis=1)).distance < 0
    assert abs(x[inside.argmax()] - 0.2) < 1.1 / 64
    assert inside[x > 0.22].all()


def test_a_sheet_without_thickness_becomes_a_thin_solid():
    sheet = trimesh.creation.box(extents=(0.8, 1e-5, 0.8))
    field = field_of(flat_colored(sheet))
    rng = np.random.default_rng(2)
    points = np.stack([*rng.uniform(-0.35, 0.35, (2, 500)), np.zeros(500)], axis=1)[:, [0, 2, 1]]
    assert (field.sample(points).distance < 0).mean() > 0.99
    points[:, 1] = 0.02
    assert (field.sample(points).distance > 0).all()


def test_a_lampshade_has_no_holes_and_no_folds():
    """A wall without thickness, whose inner side is seen at a slant: one point in five pixels."""
    angle = np.linspace(0.0, 2.0 * np.pi, 101)[:-1]
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    rings = [
        np.column_stack([(0.3 - 0.2 * z) * ring, np.full(100, z)])
        for z in np.linspace(-0.4, 0.4, 9)
    ]
    low = np.arange(100)[None] + 100 * np.arange(8)[:, None]
    beside = np.roll(low, -1, axis=1)
    quads = np.stack([low, beside, beside + 100, low + 100], axis=-1).reshape(-1, 4)
    wall = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    field = field_of(flat_colored(trimesh.Trimesh(np.concatenate(rings), wall, process=False)))
    cells = 64
    settings = ClassicalSettings(thickness=least_thickness(cells))
    field = ClassicalField(field.observation, settings)
    vertices, faces = extract_isosurface(
        lambda points: field.sample(points).distance, cells, field.observation.position, sharp=False
    )
    assert len(vertices) - len(faces) // 2 == 0  # Euler's number of a ring
    thin = field.thinned(vertices)
    corners = thin[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    centre = corners.mean(axis=1)
    middle = np.abs(centre[:, 2]) < 0.35
    before = vertices[faces].mean(axis=1)
    outer = np.linalg.norm(before[:, :2], axis=1) > 0.3 - 0.2 * before[:, 2]
    outwards = (normal[:, :2] * centre[:, :2]).sum(axis=1) > 0
    assert (outwards == outer)[middle].mean() > 0.995


def test_noise_is_zero_for_exact_images_and_grows_with_contradiction():
    images, hit = observe(bowl(), 64)
    assert estimate_noise(lift(images, ORTHO6, hit)) == 0.0
    levels = []
    for level in (0.04, 0.08):
        settings = Corruption(clean_share=0, coord_noise=(level, level * 1.001), drop_share=0)
        spoilt, new_hit, cameras = corrupt(images, hit, ORTHO6, settings, np.random.default_rng(0))
        levels.append(estimate_noise(lift(spoilt, cameras, new_hit)))
    assert 0.0 < levels[0] < levels[1] < 0.2


def test_colours_come_from_the_side_that_a_normal_names():
    box = trimesh.creation.box(extents=(0.8, 0.02, 0.8))
    front = box.face_normals[:, 1] < -0.5
    colours = np.where(front[:, None], [[1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]])
    field = field_of(flat_colored(box, colours))
    points = np.array([[0.1, -0.01, 0.1], [0.1, 0.01, 0.1]])
    normals = np.array([[0.0, -1, 0], [0.0, 1, 0]])
    np.testing.assert_allclose(field.colour(points, normals), [[1, 0, 0], [0, 0, 1]], atol=0.01)


def test_a_handful_of_points_is_enough_for_a_field():
    images, hit = observe(sphere(), 32)
    few = np.zeros_like(hit)
    few[0, 16, 15:17] = True
    field = ClassicalField(lift(images, ORTHO6[:6], few))
    assert np.isfinite(field.sample(directions(10) * 0.4).distance).all()
    assert np.isfinite(field.colour(directions(10) * 0.4)).all()


def test_no_points_at_all_are_an_error():
    images, hit = observe(sphere(), 32)
    with pytest.raises(ValueError, match="no field"):
        ClassicalField(lift(images, ORTHO6, np.zeros_like(hit)))


def test_a_slanted_sheet_thinner_than_a_pixel_is_no_contradiction():
    """From its edge it hits no pixel of two views, which look through it: it is there all the same.

    The body beside it is what those views do see.
    """
    sheet = trimesh.creation.box(extents=(0.8, 0.5, 1e-3))
    sheet.apply_transform(trimesh.transformations.rotation_matrix(0.3, [0, 1, 0]))
    handle = trimesh.creation.box(extents=(0.06, 0.06, 0.06))
    handle.apply_translation([-0.42, 0.0, 0.13])
    images, hit = observe(flat_colored(trimesh.util.concatenate([sheet, handle])))
    assert hit[0].sum() < 0.2 * hit[4].sum()  # the front view misses most of it
    assert estimate_noise(lift(images, ORTHO6, hit)) == 0.0
