"""Images of a given mesh are those that Blender renders of it."""

from pathlib import Path

import pytest
import torch
from rendering import render
from shared_assets import ASSETS

from data_pipeline.contract import RenderSpec, view_layout
from modules.pipelines.texturing import GivenMesh

SIDE = 64


@pytest.mark.assets
@pytest.mark.blender
@pytest.mark.slow
def test_a_mesh_shows_the_geometry_that_a_rendered_sample_of_it_holds(tmp_path: Path):
    uids = ("furniture_couch", "ycb_bowl", "city_car_police")
    paths = {uid: ASSETS / f"{uid}.glb" for uid in uids}
    spec = RenderSpec(resolution_px=SIDE, samples=1, surface_points=16, sdf_points=16)
    rendered = render(paths, tmp_path, spec)
    assert not rendered.failures
    for uid, path in paths.items():
        given, meta = GivenMesh.load(path), rendered.meta(uid)
        assert given.frame.scale == pytest.approx(meta["scale"], rel=1e-6)
        assert given.frame.offset == pytest.approx(meta["offset"], abs=1e-6)
        images, hit = given.geometry(view_layout("ortho6"), SIDE)
        stored = torch.from_numpy(rendered.views(uid, "hit") > 127)
        assert (hit ^ stored.reshape(hit.shape)).float().mean() < 1e-3
        both = hit & stored.reshape(hit.shape)
        for index, name, scale, most in ((1, "normal", 1.0, 2e-3), (2, "coord", 2.0, 2e-4)):
            blender = torch.from_numpy(rendered.views(uid, name)) * scale
            error = (images[index].permute(0, 2, 3, 1) - blender)[both].norm(dim=-1)
            assert error.quantile(0.99) < most, (uid, name)
