"""Read a set of shards: its manifest, and single samples by number or uid."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from data_pipeline.contract import UserError, check_conventions
from data_pipeline.shards.durable import recover
from data_pipeline.shards.index import SampleIndex

MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.npz"
MANIFEST_VERSION = 2

REPAIR = "python -m data_pipeline repair out=STAGING shards={} mends it"


def read_manifest(directory: Path, kind: str) -> dict[str, Any]:
    """Return a set's manifest.

    Args:
        directory: a folder that `pack` or `encode` wrote.
        kind: what the shards must hold: `samples` or `latents`.

    Raises:
        UserError: there is no manifest, or its kind, version or conventions are not ours.
    """
    path = directory / MANIFEST_NAME
    if not path.is_file():
        recover(directory)  # a packer died where folders cannot be exchanged in one step
    if not path.is_file():
        made_by = "python -m data_pipeline pack" if kind == "samples" else "python encode.py"
        raise UserError(
            f"{directory} holds no {MANIFEST_NAME}: make the {kind} with {made_by} (if other files "
            "of a set are left there, delete the folder first)"
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = (manifest["version"], manifest["kind"])
        _ = manifest["shards"], manifest["files"], manifest["members"], manifest["num_samples"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}): delete {directory}, and write the set again"
        ) from error
    if found != (MANIFEST_VERSION, kind):
        raise UserError(
            f"{path} is of kind {found[1]!r}, version {found[0]}; needed are {kind!r}, version "
            f"{MANIFEST_VERSION}: name the other folder, or write the set again"
        )
    check_conventions(manifest["conventions"], str(directory))
    return manifest


class ShardSet:
    """A folder of shards, readable at random: sample `i` costs one `pread`, and no seek is shared.

    Args:
        directory: a folder that `pack` or `encode` wrote.
        kind: what the shards must hold: `samples` or `latents`.

    Raises:
        UserError: there is no manifest, its kind, version or conventions are not ours, or the
            index is damaged.
    """

    def __init__(self, directory: Path, kind: str) -> None:
        self.directory = directory
        self.manifest = read_manifest(directory, kind)
        path = directory / INDEX_NAME
        mend = REPAIR.format(directory) if kind == "samples" else "run encode.py again"
        try:
            self.index = SampleIndex.load(path)
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing: {mend}") from error
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}): {mend}") from error
        if len(self.index) != self.manifest["num_samples"]:
            raise UserError(
                f"{path} lists {len(self.index)} samples, the manifest "
                f"{self.manifest['num_samples']}: {mend}"
            )
        self._members = sorted(self.manifest["members"])
        self._uids: list[str] | None = None
        self._files: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.index)

    @property
    def uids(self) -> list[str]:
        """The uids of all samples, ascending; made at the first use."""
        if self._uids is None:
            self._uids = [uid.decode() for uid in self.index.uids.tolist()]
        return self._uids

    @property
    def sha256(self) -> str:
        """SHA-256 of the manifest: names the data exactly, for lineage."""
        return hashlib.sha256((self.directory / MANIFEST_NAME).read_bytes()).hexdigest()

    def read(self, i: int) -> dict[str, bytes]:
        """Return the members of sample `i` by name.

        Raises:
            UserError: the shard is missing or shorter than the index says.
        """
        block = self.read_block(i)
        spans = self.index.member_spans(i)
        return {name: block[a:b] for name, (a, b) in zip(self._members, spans, strict=True)}

    def read_block(self, i: int) -> bytes:
        """Return the bytes of sample `i` in its shard, tar headers included; raises like `read`."""
        shard = int(self.index.shard[i])
        start, end = self.index.span(i)
        block = os.pread(self._descriptor(shard), end - start, start)
        if len(block) != end - start:
            name = self.manifest["shards"][shard]["name"]
            raise UserError(
                f"{self.directory / name} is shorter than its index says: it was damaged; "
                + REPAIR.format(self.directory)
            )
        return block

    def _descriptor(self, shard: int) -> int:
        key = (os.getpid(), shard)  # a forked loader worker opens its own
        if key not in self._files:
            path = self.directory / self.manifest["shards"][shard]["name"]
            try:
                self._files[key] = os.open(path, os.O_RDONLY)
            except FileNotFoundError as error:
                mend = REPAIR.format(self.directory)
                raise UserError(f"{path} is missing: {mend}") from error
        return self._files[key]

    def index_of(self, uid: str) -> int:
        """Return the number of the sample `uid`, or raise UserError with the nearest names."""
        i = self.index.find(uid)
        if i is None:
            near = ", ".join(self.index.near(uid))
            raise UserError(f"{self.directory} holds no sample {uid!r}: did you mean {near}?")
        return i


def file_entry(path: Path) -> dict[str, Any]:
    """Return what a manifest says of a file: `bytes` and `sha256`."""
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
