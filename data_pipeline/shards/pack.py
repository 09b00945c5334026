"""Pack finished samples of a staging folder into shards."""

import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipeline.contract import UserError, check_meta
from data_pipeline.shards.manifest import MANIFEST_NAME, ShardSet, read_manifest
from data_pipeline.shards.verify import unlisted, verify_shards
from data_pipeline.shards.writer import ShardWriter
from data_pipeline.staging import Staging

CONFIG_KEYS = ("config_hash", "render_spec", "blender", "renderer")
"""What a manifest takes from a staging folder's render.json."""


def pack_samples(staging_root: Path, shards: Path, samples_per_shard: int) -> dict[str, Any]:
    """Pack every finished sample, in the order of uids, and return the manifest.

    The files are a function of the samples alone. Nothing is written when `shards` already holds
    samples of exactly these uids, none finished after it, and unharmed as far as sizes tell.

    Raises:
        UserError: `shards` lies in the staging folder, nothing is staged, a sample or the set that
            is there already was rendered under another config, or the set's folder holds files of
            others.
    """
    inside = (shards.resolve(), *shards.resolve().parents)
    if staging_root.resolve() in inside:
        raise UserError(f"shards={shards} lies in the staging folder {staging_root}: name another")
    staging = Staging(staging_root)
    uids = staging.done_uids()
    if not uids:
        raise UserError(
            f"{staging_root} holds no finished sample: render first "
            f"(python -m data_pipeline render out={staging_root})"
        )
    render = staging.render_record()
    extra = {key: render[key] for key in CONFIG_KEYS}
    extra |= {"kind": "samples", "samples_per_shard": samples_per_shard, "set_version": 1}
    if (shards / MANIFEST_NAME).is_file():
        old = _replaceable_manifest(shards, render["config_hash"], staging_root)
        if _holds_exactly(shards, uids, old, samples_per_shard) and _is_newer(shards, staging):
            print(f"{shards}: {len(uids)} samples are packed already")
            return old
        extra["set_version"] = old["set_version"] + 1
    with ShardWriter(shards, f"render-{render['config_hash']}", samples_per_shard) as writer:
        for uid in tqdm(uids, desc="pack", unit="sample", delay=2):
            writer.add(uid, read_staged(staging, uid, render["config_hash"]))
        manifest = writer.finish(extra)
    print(
        f"{shards}: packed {manifest['num_samples']} samples into {len(manifest['shards'])} shards"
    )
    return manifest


def read_staged(staging: Staging, uid: str, config_hash: str) -> dict[str, bytes]:
    """Return the members of a finished sample, or raise UserError if its config is another."""
    members = staging.read(uid)  # refuses what is damaged
    meta = json.loads(members["meta.json"])
    check_meta(meta)
    if meta["config_hash"] != config_hash:
        raise UserError(
            f"sample {uid} in {staging.root} is of config {meta['config_hash']}, the set is of "
            f"{config_hash}: sets do not mix; render it again"
        )
    return members


def _replaceable_manifest(shards: Path, config_hash: str, staging_root: Path) -> dict[str, Any]:
    """Return the manifest of the set that is to be replaced, or raise UserError: better not."""
    manifest = read_manifest(shards, "samples")
    if manifest["config_hash"] != config_hash:
        raise UserError(
            f"{shards} holds samples of config {manifest['config_hash']}, {staging_root} of "
            f"{config_hash}: sets do not mix; name another shards=, or delete the old one"
        )
    if strangers := unlisted(shards, manifest):
        raise UserError(
            f"{strangers[0]} is no part of the set in {shards}, which would be replaced as a "
            "whole: move it elsewhere"
        )
    return manifest


def _is_newer(shards: Path, staging: Staging) -> bool:
    """Return whether no sample was finished after the set was written."""
    return (shards / MANIFEST_NAME).stat().st_mtime_ns > staging.samples.newest_mtime_ns()


def _holds_exactly(
    shards: Path, uids: list[str], manifest: dict[str, Any], samples_per_shard: int
) -> bool:
    if manifest["samples_per_shard"] != samples_per_shard:
        return False
    if verify_shards(shards, "samples", full=False):
        return False
    return ShardSet(shards, "samples").uids == uids
