"""Look into staging folders and shards: counts by state, one sample's metadata and views."""

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from data_pipeline.codec import decode_views
from data_pipeline.contract import UserError
from data_pipeline.shards.manifest import ShardSet
from data_pipeline.staging import Staging


def print_stats(staging_root: Path, style: str) -> None:
    """Print the states of a staging folder's assets as a table or as one json object."""
    if style not in ("text", "json"):
        raise UserError(f"format={style} is not known: choose text or json")
    if not staging_root.is_dir():
        raise UserError(f"{staging_root} is no staging folder: render into it first")
    staging = Staging(staging_root)
    states = {uid: "done" for uid in staging.done_uids()}
    states |= {uid: record["reason"] for uid, record in staging.failures().items()}
    failed = Counter(state for state in states.values() if state != "done")
    num_done = len(states) - sum(failed.values())
    if style == "json":
        print(
            json.dumps({"total": len(states), "done": num_done, "failed": failed, "assets": states})
        )
        return
    print(f"{'total':12}{len(states):8}\n{'done':12}{num_done:8}")
    for reason, count in failed.most_common():
        uids = [uid for uid, state in states.items() if state == reason]
        print(f"{reason:12}{count:8}   {', '.join(uids[:5])}{', ...' if count > 5 else ''}")


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
