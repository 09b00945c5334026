"""A staging folder of ray-cast spheres: what `pack` and `repair` read, without Blender."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from sphere_shards import sphere_members

from data_pipeline.contract import RenderSpec
from data_pipeline.staging import Staging

CONFIG = "0" * 16


def stage_spheres(
    root: Path, numbers: Iterable[int], *, resolution_px: int = 16, config_hash: str = CONFIG
) -> Staging:
    """Publish the spheres of these numbers, in the order given, and return the staging folder."""
    staging = Staging(root)
    (root / "scratch").mkdir(parents=True, exist_ok=True)
    spec = asdict(RenderSpec(resolution_px=resolution_px))
    record = {"config_hash": config_hash, "render_spec": spec, "blender": "0", "renderer": "0"}
    (root / "render.json").write_text(json.dumps(record))
    for i in numbers:
        uid = f"sphere_{i:03d}"
        members = sphere_members(uid, (i, 255 - i, 128), resolution_px)
        meta = json.loads(members["meta.json"])
        meta |= {
            "config_hash": config_hash,
            "author": f"Zoë, the {i}th",
            "source": {"source": "https://example.org/a,b", "file": f"{i}.glb", "sha256": "ab"},
        }
        members["meta.json"] = json.dumps(meta, sort_keys=True, ensure_ascii=False).encode()
        staging.samples.publish(uid, members, root / "scratch")
    return staging
