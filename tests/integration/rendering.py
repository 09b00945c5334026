"""Render files in a test and read back what came out."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline.codec import decode_views
from data_pipeline.contract import RenderSpec, UserError, decode_coord, decode_normal
from data_pipeline.render.command import find_blender_python, render_assets
from data_pipeline.sources import Asset
from data_pipeline.staging import Staging


@dataclass(frozen=True)
class Rendered:
    """A staging folder: samples by uid, reasons of failure by uid."""

    staging: Staging
    failures: dict[str, dict[str, Any]]

    def meta(self, uid: str) -> dict[str, Any]:
        return json.loads(self.staging.read(uid)["meta.json"])

    def views(self, uid: str, name: str) -> NDArray[Any]:
        """Return a member's views, normals and coords decoded."""
        meta = self.meta(uid)
        lit = [light for light in meta["lightings"] if light != "albedo"]
        count = len(lit) if name == "albedo" else len(meta["cameras"])
        views = decode_views(self.staging.read(uid)[f"{name}.png"], count)
        return {"normal": decode_normal, "coord": decode_coord}.get(name, lambda v: v)(views)

    def over_white(self, uid: str) -> NDArray[np.float64]:
        rgb = self.views(uid, "rgb").astype(np.float64)
        return rgb[..., :3] * rgb[..., 3:] / 255.0 + 255.0 - rgb[..., 3:]


def render(paths: dict[str, Path], out: Path, spec: RenderSpec, **how: Any) -> Rendered:
    """Render files by uid; skip the test where Blender is not installed."""
    try:
        find_blender_python(None)
    except UserError as error:
        pytest.skip(str(error))
    assets = [Asset(uid=uid, path=path, captions=("a thing",)) for uid, path in paths.items()]
    render_assets(assets, out, spec, **({"workers": 1} | how))
    staging = Staging(out)
    return Rendered(staging, staging.failures())
