"""Mend a set of shards: keep what is whole, render what is lost, rewrite the shards concerned."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipeline.contract import UserError
from data_pipeline.shards.attribution import ATTRIBUTION_NAME, read_attribution
from data_pipeline.shards.index import IndexRow, SampleIndex, rows_of_index
from data_pipeline.shards.manifest import read_manifest
from data_pipeline.shards.pack import read_staged
from data_pipeline.shards.tar_layout import parse_block, scan_shard
from data_pipeline.shards.verify import (
    file_fault,
    is_unharmed,
    sound_index,
    unlisted,
    verify_shards,
)
from data_pipeline.shards.writer import ShardWriter
from data_pipeline.staging import Staging

RenderLost = Callable[[Sequence[str], dict[str, Any]], None]
"""Renders the samples of these uids into the staging folder; also given the set's manifest."""


@dataclass(frozen=True)
class _Shard:
    """A shard of the damaged set.

    Args:
        path: the tar, there or not.
        entry: what the manifest says of it.
        is_sound: whether all its bytes are the original ones.
        uids: the samples that it holds, or held.
        kept: rows of those samples whose bytes are the original ones.
    """

    path: Path
    entry: dict[str, Any]
    is_sound: bool
    uids: list[str]
    kept: list[IndexRow]


def repair_shards(staging_root: Path, shards: Path, render_lost: RenderLost) -> None:
    """Make a set of samples sound again; the files equal the original ones if the inputs do.

    A sample of a damaged shard is taken from there if its bytes are unharmed, else from the staging
    folder, else rendered again. Sound shards are linked, not copied. The version of the set rises
    by one.

    Args:
        staging_root: where finished samples are, and rendered ones go.
        shards: the set.
        render_lost: called once, and only if something must be rendered.

    Raises:
        UserError: the set is beyond repair, or a lost sample cannot be had again; nothing changed.
    """
    manifest = read_manifest(shards, "samples")
    if strangers := unlisted(shards, manifest):
        names = ", ".join(path.name for path in strangers[:5])
        raise UserError(f"{shards} holds what is no part of the set ({names}): move it elsewhere")
    faults = verify_shards(shards, "samples", full=True)
    if not faults:
        print(f"{shards}: sound, nothing to repair")
        return
    print(*faults, sep="\n")
    plan = _survey(shards, manifest, sound_index(shards, manifest))
    staging = Staging(staging_root)
    _have_lost_rendered(plan, staging, manifest, render_lost)
    name = manifest["shards"][0]["name"].rpartition("-")[0]
    schema = manifest["members"]
    with ShardWriter(shards, name, manifest["samples_per_shard"], schema=schema) as writer:
        for shard in tqdm(plan, desc="repair", unit="shard", delay=5):
            if shard.is_sound:
                metas = [_read_kept(shard, row)["meta.json"] for row in shard.kept]
                writer.adopt(shard.path, shard.entry, shard.kept, metas)
            else:
                _write_again(shard, writer, staging, manifest["config_hash"])
        mended = writer.finish(_carried_over(manifest))
    _report(shards, manifest, mended, sum(not shard.is_sound for shard in plan))


def _survey(shards: Path, manifest: dict[str, Any], index: SampleIndex | None) -> list[_Shard]:
    """Look at every shard: is it sound, which samples does it hold, which of them are unharmed?"""
    listed = _uids_without_index(shards, manifest) if index is None else []
    plan = []
    first = 0
    for number, entry in enumerate(tqdm(manifest["shards"], desc="survey", delay=5)):
        path = shards / entry["name"]
        is_sound = file_fault(path, entry, full=True) is None
        if index is not None:
            rows = rows_of_index(index, number)
        else:
            rows = scan_shard(path, number) if is_sound else []
        uids = [row.uid for row in rows] or listed[first : first + entry["num_samples"]]
        if len(uids) != entry["num_samples"]:
            raise UserError(
                f"nothing says which samples {path} held (index and attribution are damaged too): "
                "pack the set again"
            )
        if not is_sound:
            rows = [row for row in rows if path.is_file() and is_unharmed(path, row)]
        plan.append(_Shard(path, entry, is_sound, uids, rows))
        first += entry["num_samples"]
    return plan


def _uids_without_index(shards: Path, manifest: dict[str, Any]) -> list[str]:
    """Return all uids in order from the attribution if that is sound, else none."""
    entry = manifest["files"].get(ATTRIBUTION_NAME)
    if entry is None or file_fault(shards / ATTRIBUTION_NAME, entry, full=True):
        return []
    return [line.uid for line in read_attribution(shards / ATTRIBUTION_NAME)]


def _have_lost_rendered(
    plan: list[_Shard], staging: Staging, manifest: dict[str, Any], render_lost: RenderLost
) -> None:
    """Have every sample rendered that neither its shard nor the staging folder holds."""
    wanted = {uid for shard in plan for uid in shard.uids}
    wanted -= {row.uid for shard in plan for row in shard.kept}
    lost = sorted(wanted.difference(staging.done_uids())) if wanted else []
    if lost:
        more = ", ..." if len(lost) > 5 else ""
        print(f"{len(lost)} samples are lost, to be rendered again: {', '.join(lost[:5])}{more}")
        render_lost(lost, manifest)


def _write_again(shard: _Shard, writer: ShardWriter, staging: Staging, config_hash: str) -> None:
    kept = {row.uid: row for row in shard.kept}
    for uid in shard.uids:
        if uid in kept:
            writer.add(uid, _read_kept(shard, kept[uid]))
        else:
            writer.add(uid, read_staged(staging, uid, config_hash))


def _read_kept(shard: _Shard, row: IndexRow) -> dict[str, bytes]:
    start, end = row.span()
    with shard.path.open("rb") as file:
        file.seek(start)
        return parse_block(row.uid, file.read(end - start))


def _carried_over(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what the mended manifest takes from the old one."""
    made_anew = {"shards", "files", "num_samples", "members", "version", "conventions"}
    kept = {key: value for key, value in manifest.items() if key not in made_anew}
    return kept | {"set_version": manifest["set_version"] + 1}


def _report(shards: Path, old: dict[str, Any], new: dict[str, Any], num_rewritten: int) -> None:
    print(
        f"{shards}: {num_rewritten} of {len(new['shards'])} shards written again, set version "
        f"{new['set_version']}"
    )
    pairs = zip(new["shards"], old["shards"], strict=True)
    changed = [entry["name"] for entry, before in pairs if entry["sha256"] != before["sha256"]]
    if changed:
        print(
            f"{shards}: {len(changed)} shards are not what they were ({', '.join(changed[:5])}): "
            "an asset or what is known about it has changed since"
        )
