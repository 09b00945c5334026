"""Look into shards: one sample's metadata and views."""

import json
from pathlib import Path

import cv2
import numpy as np

from data_pipeline.codec import decode_views
from data_pipeline.contract import UserError
from data_pipeline.shards.manifest import ShardSet


def inspect_sample(shards: Path, uid: str | None, png: Path | None) -> None:
    """Print a sample's metadata; with `png`, draw its views: rgb, normal, coord, hit in rows."""
    shard_set = ShardSet(shards, "samples")
    if uid is None:
        raise UserError(f"give uid=UID, such as uid={shard_set.uids[0]} ({len(shard_set)} samples)")
    members = shard_set.read(shard_set.index_of(uid))
    meta = json.loads(members["meta.json"])
    print(json.dumps(meta, indent=1, ensure_ascii=False))
    if png is None:
        return
    rows = []
    for name in ("rgb", "normal", "coord", "hit"):
        views = decode_views(members[f"{name}.png"], len(meta["cameras"]))
        views = (views // 257).astype(np.uint8) if views.dtype == np.uint16 else views
        if name == "rgb":
            alpha = views[..., 3:].astype(np.float32) / 255.0
            views = (views[..., :3] * alpha + 255.0 * (1.0 - alpha)).round().astype(np.uint8)
        views = views if views.ndim == 4 else np.repeat(views[..., None], 3, axis=-1)
        rows.append(np.concatenate(list(views), axis=1))
    png.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(png), np.concatenate(rows)[..., ::-1]):
        raise UserError(
            f"{png} cannot be written: give a path that ends in .png in a writable folder"
        )
