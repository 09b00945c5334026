"""Base colours read back, in the views and in the surface samples."""

import numpy as np
import pytest
from golden.scenes import FACES, PANELS, RESOLUTION_PX, linear, panel_pixels

pytestmark = pytest.mark.blender

ortho6 = pytest.mark.parametrize("samples", ["ortho6"], indirect=True)


@ortho6
@pytest.mark.parametrize("name", list(PANELS))
def test_base_colours_read_back_within_one_level(samples, name):
    sample = samples["panels"]
    box = panel_pixels(sample)[name]
    expected = np.array(PANELS[name])
    if name == "product":
        light = np.array(linear(200, 100, 250)[:3]) * (0.5, 0.25, 1.0)
        expected = 255 * np.where(
            light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055
        )
    seen = sample.rgb[box].astype(float)
    assert np.abs(seen[..., :3] - expected).max() <= 1.0
    opacity = 0.25 if name == "glass" else 1.0
    assert np.abs(seen[..., 3] - 255 * opacity).max() <= 1.0
    assert sample.hit[box].all() == (name != "glass")  # below the alpha threshold: no surface


@ortho6
def test_surface_samples_carry_the_colours_of_the_panels(samples):
    sample = samples["panels"]
    position = sample.geometry["surface_position"].astype(np.float64)
    source = (position - sample.meta["offset"]) / sample.meta["scale"]
    names = np.array(list(PANELS))[np.rint(source[:, 0]).astype(int)]
    for name, colour in PANELS.items():
        found = sample.geometry["surface_albedo"][names == name].astype(float)
        if name == "glass":
            assert not len(found)
        elif name != "product":
            assert len(found) > 100
            assert np.abs(found - colour).max() <= 1.0
    # Textures repeat: at the very left the interpolation meets the opaque right edge again.
    inner = source[names == "mask"][:, 0] - 2
    assert (inner[inner > -0.37] > -0.01).all()
    assert sample.meta["qa"]["unsupported_nodes"] == []


@ortho6
def test_surface_samples_carry_the_colours_that_the_views_show(samples):
    sample = samples["cube"]
    position, normal = (sample.geometry[f"surface_{key}"] for key in ("position", "normal"))
    assert np.abs(np.abs(position).max(axis=1) - 0.5).max() < 1e-5
    for name, (_, _, out, *_) in FACES.items():
        of_face = normal @ np.array(out) > 0.99
        assert of_face.sum() == pytest.approx(4096 / 6, abs=2)
        camera = sample.cameras[sample.view(name)]
        pixels = np.floor(camera.project(position[of_face], RESOLUTION_PX)[0]).astype(int)
        seen = sample.rgb[sample.view(name)][pixels[:, 1], pixels[:, 0], :3].astype(float)
        difference = np.abs(seen - sample.geometry["surface_albedo"][of_face]).max(axis=1)
        assert np.quantile(difference, 0.8) <= 2.0  # the rest lie on the letters' edges
