"""Write shards: equal samples give byte-equal tars, whoever packs them and whenever."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.contract import CONVENTIONS_VERSION, UserError
from data_pipeline.shards.manifest import INDEX_NAME, MANIFEST_NAME, MANIFEST_VERSION, file_sha256

_TAR_HEADER_BYTES = 512


class ShardWriter:
    """Writes a set of shards into a fresh folder that appears, complete, at `finish`.

    Until then everything lies in a hidden folder beside the target, so a reader never meets half a
    set and an interrupted run leaves the old set whole.

    Args:
        directory: the set's folder; replaced as a whole if it is there already.
        name: shard names are `{name}-{index:06d}.tar`.
        samples_per_shard: how many samples a tar holds.

    Raises:
        UserError: `directory` is something else than a set of shards, or cannot be written.
    """

    def __init__(self, directory: Path, name: str, samples_per_shard: int) -> None:
        if samples_per_shard < 1:
            raise UserError(f"samples_per_shard={samples_per_shard} must be at least 1")
        if directory.exists() and not _is_replaceable(directory):
            raise UserError(
                f"{directory} holds something else than shards: not overwritten; name another"
            )
        self.directory = directory
        self.name = name
        self.samples_per_shard = samples_per_shard
        self._building = directory.parent / f".{directory.name}.building"
        self._tar: tarfile.TarFile | None = None
        self._members: tuple[str, ...] | None = None
        self._shards: list[dict[str, Any]] = []
        self._shard_of_sample: list[int] = []
        self._offsets: list[list[int]] = []
        self._sizes: list[list[int]] = []

    def __enter__(self) -> "ShardWriter":
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._building, ignore_errors=True)
        self._building.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        if self._tar is not None:
            self._tar.close()
        shutil.rmtree(self._building, ignore_errors=True)

    def add(self, uid: str, members: dict[str, bytes]) -> None:
        """Append one sample; every sample of a set has the same members."""
        names = tuple(sorted(members))
        if self._members is None:
            self._members = names
        if names != self._members:
            raise ValueError(f"sample {uid} has members {names}, the set has {self._members}")
        if "." in uid:
            raise ValueError(f"uid {uid!r} holds a dot: webdataset would cut it there")
        if self._tar is None:
            shard = f"{self.name}-{len(self._shards):06d}.tar"
            self._shards.append({"name": shard, "uids": []})
            path = self._building / shard
            self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        offsets = []
        for name in names:
            info = tarfile.TarInfo(f"{uid}.{name}")  # mtime, uid, gid are 0 and mode is 0644
            info.size = len(members[name])
            offsets.append(self._tar.offset + _TAR_HEADER_BYTES)
            self._tar.addfile(info, io.BytesIO(members[name]))
        self._shard_of_sample.append(len(self._shards) - 1)
        self._offsets.append(offsets)
        self._sizes.append([len(members[name]) for name in names])
        self._shards[-1]["uids"].append(uid)
        if len(self._shards[-1]["uids"]) == self.samples_per_shard:
            self._close_shard()

    def finish(self, extra: dict[str, Any]) -> dict[str, Any]:
        """Write index and manifest, and move the set into place.

        Args:
            extra: what the manifest says besides the shards, such as the render config's hash.

        Returns:
            The manifest.
        """
        if self._tar is not None:
            self._close_shard()
        if self._members is None:
            raise ValueError("a set of shards needs at least one sample")
        np.savez(
            self._building / INDEX_NAME,
            shard=np.asarray(self._shard_of_sample, dtype=np.int32),
            offset=np.asarray(self._offsets, dtype=np.int64),
            size=np.asarray(self._sizes, dtype=np.int64),
        )
        manifest = {
            "version": MANIFEST_VERSION,
            "conventions": CONVENTIONS_VERSION,
            "num_samples": len(self._shard_of_sample),
            "members": list(self._members),
            "index_sha256": file_sha256(self._building / INDEX_NAME),
            "shards": self._shards,
            **extra,
        }
        text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False)
        (self._building / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")
        replaced = self.directory.parent / f".{self.directory.name}.replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        if self.directory.exists():
            os.rename(self.directory, replaced)
        os.rename(self._building, self.directory)
        shutil.rmtree(replaced, ignore_errors=True)
        return manifest

    def _close_shard(self) -> None:
        assert self._tar is not None
        self._tar.close()
        self._tar = None
        shard = self._shards[-1]
        path = self._building / shard["name"]
        with path.open("rb") as file:
            os.fsync(file.fileno())
        shard |= {
            "bytes": path.stat().st_size,
            "num_samples": len(shard["uids"]),
            "sha256": file_sha256(path),
        }


def _is_replaceable(directory: Path) -> bool:
    if not directory.is_dir():
        return False
    return (directory / MANIFEST_NAME).exists() or not any(directory.iterdir())
