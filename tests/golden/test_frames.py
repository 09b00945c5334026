"""No face is mirrored or turned, and the world is where the conventions say."""

import numpy as np
import pytest
from golden.scenes import FACES, ORTHO_SCALE, RESOLUTION_PX, letter_image

pytestmark = pytest.mark.blender

ortho6 = pytest.mark.parametrize("samples", ["ortho6"], indirect=True)


@ortho6
def test_no_face_of_the_cube_is_mirrored_or_turned(samples):
    cube = samples["cube"]
    plane = ((np.arange(RESOLUTION_PX) + 0.5) / RESOLUTION_PX - 0.5) * ORTHO_SCALE
    x, y = np.meshgrid(plane, -plane)
    inside = np.maximum(np.abs(x), np.abs(y)) < 0.5 - 0.01
    texel_x = np.clip((x + 0.5) * 256, 0, 255).astype(int)
    texel_y = np.clip((0.5 - y) * 256, 0, 255).astype(int)
    for name, (letter, colour, *_) in FACES.items():
        seen = cube.rgb[cube.view(name)].astype(float)[..., :3]
        picture = letter_image(letter, colour)
        errors = {}
        for mirror in (False, True):
            for turns in range(4):
                posed = np.rot90(picture[:, ::-1] if mirror else picture, turns)
                difference = np.abs(seen - posed[texel_y, texel_x])[inside]
                errors[mirror, turns] = difference.mean()
        assert errors[False, 0] < 2.0, f"{name}: {errors}"
        assert min(errors.values()) == errors[False, 0]
        assert sorted(errors.values())[1] > 5 * errors[False, 0]


@ortho6
def test_each_view_shows_the_side_of_the_world_that_its_name_says(samples):
    cube = samples["cube"]
    for name, (_, _, out, right, up) in FACES.items():
        view = cube.view(name)
        np.testing.assert_allclose(
            cube.normal[view][cube.hit[view]], [out] * cube.hit[view].sum(), atol=1e-4
        )
        position = cube.coord[view]
        middle = RESOLUTION_PX // 2
        across = position[middle, -20] - position[middle, 20]
        upwards = position[20, middle] - position[-20, middle]
        assert np.dot(across, right) == pytest.approx(np.linalg.norm(across), rel=1e-3)
        assert np.dot(upwards, up) == pytest.approx(np.linalg.norm(upwards), rel=1e-3)


def test_the_cube_fills_the_unit_cube_and_maps_back_to_its_source(samples):
    meta = samples["cube"].meta
    assert meta["qa"]["max_abs_coord"] == pytest.approx(0.5, abs=1e-5)
    back = (np.array([0.5, 0.5, 0.5]) - meta["offset"]) / meta["scale"]
    np.testing.assert_allclose(back, [8.0, 1.0, 12.0], atol=1e-4)
