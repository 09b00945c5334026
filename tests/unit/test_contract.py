"""Cameras, encodings, frames and names do what docs/conventions.md says."""

import dataclasses
import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.contract import (
    VIEW_LAYOUTS,
    Camera,
    Hdri,
    QaLimits,
    RenderSpec,
    UserError,
    check_meta,
    decode_coord,
    decode_normal,
    depth_of_coord,
    encode_coord,
    encode_normal,
    linear_to_srgb,
    make_uid,
    srgb_to_linear,
    unit_cube_frame,
)

# where each ortho6 camera stands, and the world directions of its image's right and up
ORTHO6 = {
    "az000": ((0, -1, 0), (1, 0, 0), (0, 0, 1)),
    "az090": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "az180": ((0, 1, 0), (-1, 0, 0), (0, 0, 1)),
    "az270": ((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
    "top": ((0, 0, 1), (1, 0, 0), (0, 1, 0)),
    "bottom": ((0, 0, -1), (1, 0, 0), (0, -1, 0)),
}


@pytest.mark.parametrize("camera", VIEW_LAYOUTS["ortho6"], ids=lambda c: c.name)
def test_ortho6_stands_and_turns_as_written(camera):
    place, right, up = ORTHO6[camera.name]
    np.testing.assert_allclose(camera.matrix[:3, 3], 2.0 * np.array(place), atol=1e-12)
    np.testing.assert_allclose(camera.matrix[:3, 0], right, atol=1e-12)
    np.testing.assert_allclose(camera.matrix[:3, 1], up, atol=1e-12)


@pytest.mark.parametrize("layout", VIEW_LAYOUTS)
def test_points_along_a_pixels_ray_project_to_its_centre(layout):
    for camera in VIEW_LAYOUTS[layout]:
        origins, directions = camera.rays(16)
        pixels, depth = camera.project(origins + 2.5 * directions, 16)
        rows, columns = np.mgrid[:16, :16] + 0.5
        np.testing.assert_allclose(pixels, np.stack([columns, rows], axis=-1), atol=1e-9)
        assert (depth > 0).all()


def test_the_top_left_pixel_of_the_front_view_is_at_minus_x_plus_z():
    origins, _ = VIEW_LAYOUTS["ortho6"][0].rays(8)
    assert origins[0, 0, 0] < 0 < origins[0, 0, 2]


def test_the_whole_unit_cube_is_inside_every_view():
    corners = np.array(np.meshgrid(*[[-0.5, 0.5]] * 3)).reshape(3, -1).T
    for cameras in VIEW_LAYOUTS.values():
        for camera in cameras:
            pixels, _ = camera.project(corners, 100)
            assert (pixels >= 0).all()
            assert (pixels <= 100).all()


@given(st.lists(st.floats(-0.5, 0.5), min_size=3, max_size=3))
def test_positions_survive_encoding_to_a_step(position):
    decoded = decode_coord(encode_coord(np.array(position)))
    np.testing.assert_allclose(decoded, position, atol=1e-5)


def test_normals_survive_encoding_and_the_background_is_nought():
    normals = np.random.default_rng(0).normal(size=(100, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    np.testing.assert_allclose(decode_normal(encode_normal(normals)), normals, atol=2e-5)
    assert np.linalg.norm(decode_normal(encode_normal(np.zeros(3)))) < 3e-5


def test_srgb_and_linear_are_inverse_and_meet_known_values():
    values = np.linspace(0, 1, 256)
    np.testing.assert_allclose(linear_to_srgb(srgb_to_linear(values)), values, atol=1e-12)
    assert srgb_to_linear(np.array(0.5)) == pytest.approx(0.21404, abs=1e-5)


def test_a_box_is_centred_and_scaled_and_comes_back():
    frame = unit_cube_frame(np.array([1.0, 2.0, 3.0]), np.array([5.0, 4.0, 4.0]))
    corners = frame.to_world(np.array([[1.0, 2.0, 3.0], [5.0, 4.0, 4.0]]))
    np.testing.assert_allclose(corners, [[-0.5, -0.25, -0.125], [0.5, 0.25, 0.125]])
    np.testing.assert_allclose(frame.to_source(corners), [[1, 2, 3], [5, 4, 4]])


@given(st.text(max_size=200) | st.binary(max_size=99).map(os.fsdecode))
def test_every_name_makes_a_uid_that_webdataset_and_ustar_take(name):
    uid = make_uid(name)
    assert 0 < len(uid) <= 80
    assert uid.isascii()
    assert "." not in uid
    assert "/" not in uid


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"layout": "cube"}, "ortho6"),
        ({"resolution_px": 50}, "multiple of 8"),
        ({"lighting": "moon"}, "albedo"),
        ({"samples": 0}, "samples"),
    ],
)
def test_a_render_spec_refuses_what_cannot_be_rendered(settings, said):
    with pytest.raises(UserError, match=said):
        RenderSpec(**settings)


def test_the_config_hash_changes_with_everything_that_changes_pixels():
    base = RenderSpec().config_hash("4.5.15", "1")
    assert RenderSpec().config_hash("4.5.15", "1") == base
    others = [
        RenderSpec(samples=17).config_hash("4.5.15", "1"),
        RenderSpec(seed=1).config_hash("4.5.15", "1"),
        RenderSpec().config_hash("4.5.16", "1"),
        RenderSpec().config_hash("4.5.15", "2"),
    ]
    assert len({base, *others}) == 5


def test_a_camera_survives_json():
    for camera in (VIEW_LAYOUTS["ortho6"][3], VIEW_LAYOUTS["pinhole4"][1]):
        assert Camera(**camera.to_json()) == camera


def test_metadata_of_other_conventions_is_refused():
    with pytest.raises(UserError, match="lacks"):
        check_meta({"uid": "x"})


def test_depth_follows_from_coord_in_every_projection():
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (50, 3))
    for camera in (*VIEW_LAYOUTS["ortho6"], *VIEW_LAYOUTS["pinhole4"]):
        np.testing.assert_allclose(
            depth_of_coord(camera, points), camera.project(points, 64)[1], atol=1e-12
        )


def test_random_views_are_a_function_of_uid_and_seed_and_see_the_whole_cube():
    spec = RenderSpec(layout="random", random_views=40)
    assert spec.cameras("a") == spec.cameras("a")
    assert spec.cameras("a") != spec.cameras("b")
    assert spec.cameras("a") != RenderSpec(layout="random", random_views=40, seed=1).cameras("a")
    corners = np.array(np.meshgrid(*[[-0.5, 0.5]] * 3)).reshape(3, -1).T
    for camera in spec.cameras("a"):
        pixels, depth = camera.project(corners, 64)
        assert pixels.min() >= 0
        assert pixels.max() <= 64
        assert depth.min() > 0.01
    assert len({camera.fov_deg for camera in spec.cameras("a")}) == 40


def test_random_views_leave_the_layouts_cameras_as_they_are():
    spec = RenderSpec(random_views=2, random_lighting="hdri")
    assert spec.cameras("a")[:6] == VIEW_LAYOUTS["ortho6"]
    assert spec.lightings == ("albedo",) * 6 + ("hdri",) * 2
    assert len(set(spec.light_seeds("a")[:6])) == 1
    assert len(set(spec.light_seeds("a")[6:])) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"lighting": "studio"}, {"random_views": 1}, {"bounces": 2}, {"device": "cuda"},
        {"denoise": False}, {"samples": 17}, {"qa": QaLimits(max_pink_share=0.5)}, {"seed": 1},
    ],
)  # fmt: skip
def test_what_changes_a_sample_changes_the_config_hash(change):
    base = RenderSpec()
    assert RenderSpec(**change).config_hash("4.5", "1") != base.config_hash("4.5", "1")
    assert base.config_hash("4.5", "1") != base.config_hash("5.0", "1")
    assert base.config_hash("4.5", "1") != base.config_hash("4.5", "2")


def test_a_spec_comes_back_from_its_plain_values():
    spec = RenderSpec(random_views=1, qa=QaLimits(max_pink_share=0.5))
    assert RenderSpec.from_mapping(dataclasses.asdict(spec)) == spec


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "random"}, "random_views=N"),
        ({"lighting": "neon"}, "choose albedo, studio, hdri"),
        ({"device": "abacus"}, "device=abacus is not known"),
        ({"random_views": -1}, "at least 0"),
        ({"qa": {"max_flip_share": 5}}, r"qa\.max_flip_share=5 must lie between 0 and 1"),
        ({"qa": {"max_reprojection_px": math.nan}}, r"qa\.max_reprojection_px=nan must lie"),
    ],
)
def test_specs_that_make_no_sense_are_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message):
        RenderSpec(**settings | ({"qa": QaLimits(**settings["qa"])} if "qa" in settings else {}))


def test_an_environment_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"no file at /nowhere/sky\.exr"):
        Hdri(paths=("/nowhere/sky.exr",))
