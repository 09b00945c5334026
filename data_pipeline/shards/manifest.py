"""Read a set of shards: its manifest, single samples by number, and its checks."""

import difflib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipeline.contract import UserError, check_conventions

MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.npz"
MANIFEST_VERSION = 1


class ShardSet:
    """A folder of shards, readable at random: sample `i` costs one `pread`, and no seek is shared.

    Args:
        directory: a folder that `pack` or `encode` wrote.
        kind: what the shards must hold: `samples` or `latents`.

    Raises:
        UserError: there is no manifest, or its kind, version or conventions are not ours.
    """

    def __init__(self, directory: Path, kind: str) -> None:
        path = directory / MANIFEST_NAME
        if not path.is_file():
            made_by = "python -m data_pipeline pack" if kind == "samples" else "python encode.py"
            raise UserError(f"{directory} holds no {MANIFEST_NAME}: make the {kind} with {made_by}")
        self.directory = directory
        try:
            self.manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            found = (self.manifest["version"], self.manifest["kind"])
        except (ValueError, KeyError) as error:
            raise UserError(f"{path} is damaged ({error}): write the set again") from error
        if found != (MANIFEST_VERSION, kind):
            raise UserError(
                f"{path} is of kind {found[1]!r}, version {found[0]}; needed are {kind!r}, version "
                f"{MANIFEST_VERSION}: name the other folder, or write the set again"
            )
        check_conventions(self.manifest["conventions"], str(directory))
        self.uids: list[str] = [uid for shard in self.manifest["shards"] for uid in shard["uids"]]
        index = np.load(directory / INDEX_NAME)
        self._shard, self._offset, self._size = index["shard"], index["offset"], index["size"]
        self._files: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.uids)

    @property
    def sha256(self) -> str:
        """SHA-256 of the manifest: names the data exactly, for lineage."""
        return hashlib.sha256((self.directory / MANIFEST_NAME).read_bytes()).hexdigest()

    def read(self, i: int) -> dict[str, bytes]:
        """Return the members of sample `i` by name.

        Raises:
            UserError: the shard is missing or shorter than the index says.
        """
        shard = int(self._shard[i])
        start = int(self._offset[i, 0])
        end = int(self._offset[i, -1] + self._size[i, -1])
        block = os.pread(self._descriptor(shard), end - start, start)
        if len(block) != end - start:
            name = self.manifest["shards"][shard]["name"]
            raise UserError(
                f"{self.directory / name} is shorter than its index says: it was damaged; "
                "python -m data_pipeline verify tells, and pack writes it again"
            )
        return {
            name: block[offset - start : offset - start + size]
            for name, offset, size in zip(
                self.manifest["members"],
                self._offset[i].tolist(),
                self._size[i].tolist(),
                strict=True,
            )
        }

    def _descriptor(self, shard: int) -> int:
        key = (os.getpid(), shard)  # a forked loader worker opens its own
        if key not in self._files:
            path = self.directory / self.manifest["shards"][shard]["name"]
            try:
                self._files[key] = os.open(path, os.O_RDONLY)
            except FileNotFoundError as error:
                raise UserError(f"{path} is missing: pack the set again") from error
        return self._files[key]

    def index_of(self, uid: str) -> int:
        """Return the number of the sample `uid`, or raise UserError with the nearest names."""
        if uid not in self.uids:
            near = difflib.get_close_matches(uid, self.uids, n=3, cutoff=0.3) or self.uids[:3]
            raise UserError(
                f"{self.directory} holds no sample {uid!r}: did you mean {', '.join(near)}?"
            )
        return self.uids.index(uid)


def verify_shards(directory: Path, kind: str, *, full: bool) -> list[str]:
    """Return what is wrong with a set of shards, a line for each fault; empty when it is sound.

    Args:
        directory: the set.
        kind: `samples` or `latents`.
        full: also read every byte and compare SHA-256; else only names and sizes.
    """
    shard_set = ShardSet(directory, kind)
    faults = []
    for shard in tqdm(shard_set.manifest["shards"], desc="verify", unit="shard", delay=5):
        path = directory / shard["name"]
        if not path.is_file():
            faults.append(f"{path}: missing")
        elif path.stat().st_size != shard["bytes"]:
            faults.append(
                f"{path}: {path.stat().st_size} bytes, the manifest says {shard['bytes']}"
            )
        elif full and file_sha256(path) != shard["sha256"]:
            faults.append(f"{path}: its SHA-256 differs from the manifest's")
    listed = {shard["name"] for shard in shard_set.manifest["shards"]}
    faults += [
        f"{p}: not in the manifest" for p in sorted(directory.glob("*.tar")) if p.name not in listed
    ]
    if file_sha256(directory / INDEX_NAME) != shard_set.manifest["index_sha256"]:
        faults.append(f"{directory / INDEX_NAME}: its SHA-256 differs from the manifest's")
    return faults


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
