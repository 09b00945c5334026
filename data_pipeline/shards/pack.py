"""Pack finished samples of a staging folder into shards."""

import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipeline.contract import UserError, check_meta
from data_pipeline.shards.manifest import MANIFEST_NAME
from data_pipeline.shards.writer import ShardWriter
from data_pipeline.staging import Staging


def pack_samples(staging_root: Path, shards: Path, samples_per_shard: int) -> dict[str, Any]:
    """Pack every finished sample, in the order of uids, and return the manifest.

    Nothing is written when `shards` already holds exactly these samples.

    Raises:
        UserError: nothing is staged, or a sample was rendered under another config.
    """
    staging = Staging(staging_root)
    uids = staging.done_uids()
    if not uids:
        raise UserError(
            f"{staging_root} holds no finished sample: render first "
            f"(python -m data_pipeline render out={staging_root})"
        )
    render = staging.render_record()
    extra = {key: render[key] for key in ("config_hash", "render_spec", "blender", "renderer")}
    extra |= {"kind": "samples", "samples_per_shard": samples_per_shard}
    packed = _packed_already(shards, uids, extra)
    if packed is not None:
        print(f"{shards}: {len(uids)} samples are packed already")
        return packed
    name = f"render-{render['config_hash']}"
    with ShardWriter(shards, name, samples_per_shard) as writer:
        for uid in tqdm(uids, desc="pack", unit="sample", delay=2):
            members = staging.read(uid)
            meta = json.loads(members["meta.json"])
            check_meta(meta)
            if meta["config_hash"] != render["config_hash"]:
                raise UserError(
                    f"sample {uid} is of config {meta['config_hash']}, the staging folder "
                    f"is of {render['config_hash']}: sets do not mix; render it again"
                )
            writer.add(uid, members)
        manifest = writer.finish(extra)
    print(
        f"{shards}: packed {manifest['num_samples']} samples into {len(manifest['shards'])} shards"
    )
    return manifest


def _packed_already(shards: Path, uids: list[str], extra: dict[str, Any]) -> dict[str, Any] | None:
    """Return the manifest if the set holds the same uids under the same config."""
    path = shards / MANIFEST_NAME
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    same = all(manifest.get(key) == value for key, value in extra.items())
    listed = [uid for shard in manifest.get("shards", ()) for uid in shard["uids"]]
    return manifest if same and listed == uids else None
