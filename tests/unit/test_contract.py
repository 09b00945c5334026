"""Cameras, encodings, frames and names do what docs/conventions.md says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.contract import (
    VIEW_LAYOUTS,
    Camera,
    RenderSpec,
    UserError,
    check_meta,
    decode_coord,
    decode_normal,
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


@given(st.text(max_size=200))
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
