"""Objaverse from its cache to samples: what is known of an asset travels, its file goes."""

import gzip
import json
from pathlib import Path

import pytest
from golden.glb import GlbBuilder

from data_pipeline.contract import RenderSpec
from data_pipeline.render.command import render_assets
from data_pipeline.sources.objaverse import ObjaverseSource
from data_pipeline.sources.procedural import recipe
from data_pipeline.staging import Staging

pytestmark = pytest.mark.blender

SOUND, BROKEN = "a" * 32, "b" * 32
SMALL = RenderSpec(resolution_px=32, samples=2, surface_points=64, sdf_points=64)


def write_cache(home: Path) -> None:
    """Write a cache as the package lays it out: a sound object, and one without its texture."""
    folder = home / "hf-objaverse-v1"
    for name in ("glbs/000-000", "metadata"):
        (folder / name).mkdir(parents=True)
    (folder / f"glbs/000-000/{SOUND}.glb").write_bytes(recipe(0, 0).glb())
    broken = GlbBuilder()
    broken.document |= {"images": [{"uri": "gone.png"}], "textures": [{"source": 0}]}
    broken.document["meshes"] = [{"primitives": [{"attributes": {}}]}]
    broken.write(folder / f"glbs/000-000/{BROKEN}.glb")
    indices = {
        "object-paths": {uid: f"glbs/000-000/{uid}.glb" for uid in (SOUND, BROKEN)},
        "metadata/000-000": {
            uid: {"uid": uid, "name": "Thing", "license": "by", "user": {"username": "ann"}}
            for uid in (SOUND, BROKEN)
        },
    }
    for name, content in indices.items():
        (folder / f"{name}.json.gz").write_bytes(gzip.compress(json.dumps(content).encode()))


def test_assets_are_deleted_once_settled_and_their_licence_travels(tmp_path) -> None:
    write_cache(tmp_path / "home")
    source = ObjaverseSource(tmp_path / "home", keep_files=False, quota_gb=1.0)
    summary = render_assets(source.assets(), tmp_path / "out", SMALL, workers=1)
    assert (summary.num_rendered, summary.failures) == (1, {"missing_texture": 1})
    assert not list((tmp_path / "home").rglob("*.glb"))
    meta = json.loads(Staging(tmp_path / "out").read(SOUND)["meta.json"])
    assert (meta["licence"], meta["author"]) == ("CC-BY-4.0", "ann")
    assert meta["source"]["source"] == f"https://sketchfab.com/3d-models/{SOUND}"
