"""Find what is wrong with a set of shards. Needs neither the staging folder nor Blender."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipeline.contract import UserError
from data_pipeline.shards.attribution import ATTRIBUTION_NAME, read_attribution
from data_pipeline.shards.index import IndexRow, SampleIndex, rows_of_index
from data_pipeline.shards.manifest import INDEX_NAME, MANIFEST_NAME, file_sha256, read_manifest
from data_pipeline.shards.tar_layout import sample_digest

_NAMED = 5
"""How many damaged samples of a shard are named."""


def verify_shards(directory: Path, kind: str, *, full: bool) -> list[str]:
    """Return what is wrong with a set of shards, a line for each fault; empty when it is sound.

    Args:
        directory: the set.
        kind: `samples` or `latents`.
        full: also read every byte and compare SHA-256; else only names and sizes, and the SHA-256
            of what lies beside the shards.

    Raises:
        UserError: there is no manifest, or not one of this kind.
    """
    manifest = read_manifest(directory, kind)
    index = sound_index(directory, manifest)
    return [
        *_faults_of_manifest(manifest),
        *_faults_of_files(directory, manifest, index, full),
        *_faults_of_shards(directory, manifest, index, full),
        *(f"{path}: not in the manifest" for path in unlisted(directory, manifest)),
    ]


def sound_index(directory: Path, manifest: dict[str, Any]) -> SampleIndex | None:
    """Return the set's index if it is the one that the manifest vouches for."""
    if file_fault(directory / INDEX_NAME, manifest["files"][INDEX_NAME], full=True):
        return None
    return SampleIndex.load(directory / INDEX_NAME)


def file_fault(path: Path, entry: dict[str, Any], *, full: bool) -> str | None:
    """Return what is wrong with one file of a set, or None.

    Args:
        path: the file.
        entry: its `bytes` and `sha256` in the manifest.
        full: also compare SHA-256.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "missing"
    if size != entry["bytes"]:
        verb = "truncated" if size < entry["bytes"] else "extended"
        return f"{verb}: {size} bytes, the manifest says {entry['bytes']}"
    if full and file_sha256(path) != entry["sha256"]:
        return "its SHA-256 differs from the manifest's"
    return None


def unlisted(directory: Path, manifest: dict[str, Any]) -> list[Path]:
    """Return what lies in the folder and is no part of the set; hidden files are let be."""
    listed = {MANIFEST_NAME, *manifest["files"], *(shard["name"] for shard in manifest["shards"])}
    return sorted(
        path
        for path in directory.iterdir()
        if path.name not in listed and not path.name.startswith(".")
    )


def is_unharmed(shard: Path, row: IndexRow) -> bool:
    """Return whether a sample's bytes in a shard are the ones that were packed."""
    start, end = row.span()
    with shard.open("rb") as file:
        file.seek(start)
        return sample_digest(file.read(end - start)) == row.digest


def _faults_of_manifest(manifest: dict[str, Any]) -> Iterator[str]:
    names = Counter(shard["name"] for shard in manifest["shards"])
    yield from (f"{name}: {n} times in the manifest" for name, n in names.items() if n > 1)
    total = sum(shard["num_samples"] for shard in manifest["shards"])
    if total != manifest["num_samples"]:
        yield f"{MANIFEST_NAME}: its shards hold {total} samples, not {manifest['num_samples']}"


def _faults_of_files(
    directory: Path, manifest: dict[str, Any], index: SampleIndex | None, full: bool
) -> Iterator[str]:
    for name, entry in manifest["files"].items():
        if fault := file_fault(directory / name, entry, full=True):
            yield f"{directory / name}: {fault}"
        elif full and name == ATTRIBUTION_NAME and index is not None:
            lines = read_attribution(directory / name)
            if [line.uid.encode() for line in lines] != index.uids.tolist():
                yield f"{directory / name}: its uids are not those of the samples"
    if index is None:
        return
    if (duplicate := _duplicate(index)) is not None:
        yield f"{directory / INDEX_NAME}: uid {duplicate} is there twice, or uids do not ascend"
    counts = np.bincount(index.shard, minlength=len(manifest["shards"])).tolist()
    if counts != [shard["num_samples"] for shard in manifest["shards"]]:
        yield f"{directory / INDEX_NAME}: its samples per shard are not the manifest's"


def _duplicate(index: SampleIndex) -> str | None:
    wrong = np.flatnonzero(index.uids[1:] <= index.uids[:-1])
    return index.uid(int(wrong[0]) + 1) if len(wrong) else None


def _faults_of_shards(
    directory: Path, manifest: dict[str, Any], index: SampleIndex | None, full: bool
) -> Iterator[str]:
    shards = manifest["shards"]
    for number, shard in enumerate(tqdm(shards, desc="verify", unit="shard", delay=5)):
        path = directory / shard["name"]
        fault = file_fault(path, shard, full=full)
        if fault is None:
            continue
        if index is not None and path.is_file():
            fault += _what_is_left(path, number, index, full)
        yield f"{path}: {fault}"


def _what_is_left(shard: Path, number: int, index: SampleIndex, full: bool) -> str:
    """Say which samples of a damaged shard are harmed, as far as the mode allows."""
    rows = np.flatnonzero(index.shard == number)
    if not full:
        num_whole = int((index.ends()[rows] <= shard.stat().st_size).sum())
        return f"; {num_whole} of its {len(rows)} samples are left"
    harmed = [row.uid for row in rows_of_index(index, number) if not is_unharmed(shard, row)]
    if not harmed:
        return "; its samples are whole, what ends the tar is not"
    more = f" and {len(harmed) - _NAMED} more" if len(harmed) > _NAMED else ""
    return f"; harmed: {', '.join(harmed[:_NAMED])}{more}"


def report_faults(faults: list[str], directory: Path, kind: str, bound: int = 20) -> None:
    """Print a line for each fault, up to a bound, and raise UserError if there is any."""
    for fault in faults[:bound]:
        print(fault)
    if len(faults) > bound:
        print(f"... and {len(faults) - bound} more")
    if faults:
        mend = f"python -m data_pipeline repair out=STAGING shards={directory}"
        mend = mend if kind == "samples" else "run encode.py again"
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise UserError(f"{count} in {directory}: {mend}")
