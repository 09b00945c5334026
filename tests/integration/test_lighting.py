"""Lit presets, random views, and that pixels depend on the spec alone."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from difficult_assets import scene
from rendering import Rendered, render

from data_pipeline.contract import Hdri, RenderSpec, UserError
from data_pipeline.duplicates.features import read_features
from data_pipeline.loading.samples import decode_sample

pytestmark = pytest.mark.blender

SMALL = RenderSpec(resolution_px=64, samples=8, surface_points=64, sdf_points=64)


@pytest.fixture(scope="module")
def glb(tmp_path_factory) -> Path:
    return scene().write(tmp_path_factory.mktemp("scene") / "boxes.glb")


def render_twice(glb: Path, out: Path, spec: RenderSpec) -> Rendered:
    """Render one file under two uids."""
    return render({"a": glb, "b": glb}, out, spec)


def test_lit_views_keep_their_albedo_and_every_geometric_pass(glb, tmp_path):
    plain = render({"a": glb}, tmp_path / "albedo", SMALL)
    lit = render({"a": glb}, tmp_path / "lit", dataclasses.replace(SMALL, lighting="studio"))
    for name in ("normal", "coord", "hit"):
        np.testing.assert_array_equal(lit.views("a", name), plain.views("a", name))
    solid = plain.views("a", "rgb")[..., 3] == 255
    solid &= lit.views("a", "rgb")[..., 3] == 255
    difference = lit.views("a", "albedo").astype(int) - plain.views("a", "rgb")[..., :3]
    assert np.quantile(np.abs(difference)[solid], 0.97) <= 1
    assert "albedo.png" not in plain.staging.read("a")
    # Each side gets light: no view is black, and no two sides are lit alike.
    means = [view[mask].mean() for view, mask in zip(lit.over_white("a"), solid, strict=True)]
    assert min(means) > 20
    assert np.std(means) > 5


def test_a_sky_is_drawn_for_each_asset_and_for_each_random_view(glb, tmp_path):
    spec = dataclasses.replace(SMALL, lighting="hdri", random_views=2)
    done = render_twice(glb, tmp_path / "out", spec)
    assert done.meta("a")["lightings"] == ["hdri"] * 8
    same, other = done.over_white("a")[0], done.over_white("b")[0]
    both = (done.views("a", "hit")[0] > 0) & (done.views("b", "hit")[0] > 0)
    assert np.abs(same - other)[both].mean() > 2.0


def test_random_views_follow_the_layout_under_a_light_of_their_own(glb, tmp_path):
    spec = dataclasses.replace(SMALL, random_views=3, random_lighting="studio")
    done, base = (
        render_twice(glb, tmp_path / name, s) for name, s in (("more", spec), ("base", SMALL))
    )
    meta = done.meta("a")
    assert meta["lightings"] == ["albedo"] * 6 + ["studio"] * 3
    assert [camera["name"] for camera in meta["cameras"]][6:] == [
        "random00",
        "random01",
        "random02",
    ]
    assert meta["cameras"][6:] != done.meta("b")["cameras"][6:]
    assert len(done.views("a", "albedo")) == 3
    for name in ("rgb", "normal", "coord", "hit"):
        np.testing.assert_array_equal(done.views("a", name)[:6], base.views("a", name))
    # Training and duplicates look at the layout's views alone.
    seen, plain = (decode_sample(r.staging.read("a")) for r in (done, base))
    for name in ("images", "alpha", "hit", "camera_to_world"):
        np.testing.assert_array_equal(seen[name], plain[name])
    hashes = [read_features(r.staging.read("a")).bits for r in (done, base)]
    np.testing.assert_array_equal(*hashes)
    assert meta["qa"]["reprojection_px"] < 0.01
    assert min(meta["qa"]["hit_share"]) > 0.01


def test_pixels_are_the_same_again_and_with_more_threads_or_workers(glb, tmp_path):
    spec = dataclasses.replace(SMALL, lighting="hdri", random_views=1)
    one, two = (
        render({"a": glb, "b": glb}, tmp_path / str(workers), spec, workers=workers)
        for workers in (1, 2)  # all threads of the machine to one, or half of them to each of two
    )
    for uid in "ab":
        for name in ("rgb", "albedo", "normal", "coord", "hit"):
            np.testing.assert_array_equal(one.views(uid, name), two.views(uid, name))


def test_an_environment_image_lights_by_content_and_not_by_path(glb, tmp_path):
    sky = np.full((32, 64, 3), 0.05, np.float32)
    sky[:16, :, 0] = 2.0  # BGR: blue above
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        assert cv2.imwrite(str(tmp_path / name / "sky.hdr"), sky)
    specs = [
        dataclasses.replace(
            SMALL, lighting="hdri", hdri=Hdri(paths=(str(tmp_path / name / "sky.hdr"),))
        )
        for name in ("one", "two")
    ]
    assert specs[0].config_hash("4.5", "1") == specs[1].config_hash("4.5", "1")
    assert specs[0].config_hash("4.5", "1") != SMALL.config_hash("4.5", "1")
    done = render({"a": glb}, tmp_path / "out", specs[0])
    assert str(tmp_path) not in str(done.meta("a"))
    top = done.over_white("a")[4][done.views("a", "hit")[4] > 0]
    bottom = done.over_white("a")[5][done.views("a", "hit")[5] > 0]
    assert top[:, 2].mean() > 2 * bottom[:, 2].mean()


def test_a_gpu_that_is_not_there_is_an_error_and_never_a_cpu_run(glb, tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipeline.render.device.GPU_FILES", ("/dev/null",))  # asks Blender
    spec = dataclasses.replace(SMALL, device="hip")
    with pytest.raises(UserError, match="device=hip: Cycles finds no such GPU"):
        render({"a": glb}, tmp_path / "out", spec)
    assert not list((tmp_path / "out").glob("samples/*"))
