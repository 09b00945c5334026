"""Write a set of shards: equal samples give byte-equal files, whoever packs them and whenever."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from data_pipeline.contract import CONVENTIONS_VERSION, UserError
from data_pipeline.shards.attribution import (
    ATTRIBUTION_NAME,
    Attribution,
    attribution_csv,
    attribution_of,
)
from data_pipeline.shards.durable import building_folder, replace_folder, sync, write_durably
from data_pipeline.shards.index import IndexRow, index_of_rows
from data_pipeline.shards.manifest import INDEX_NAME, MANIFEST_NAME, MANIFEST_VERSION, file_entry
from data_pipeline.shards.schema import describe_members
from data_pipeline.shards.tar_layout import end_of_shard, sample_block, sample_digest


class ShardWriter:
    """Writes a set of shards into a fresh folder that takes the old one's place at `finish`.

    Until then everything lies in a hidden folder beside the target, so a reader never meets half a
    set and an interrupted run leaves the old set whole.

    Args:
        directory: the set's folder; replaced as a whole if it is there already.
        name: shard names are `{name}-{index:06d}.tar`.
        samples_per_shard: how many samples a tar holds.
        schema: what the manifest says of the members; read from the first sample by default.

    Raises:
        UserError: `directory` is something else than a set of shards, or cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        samples_per_shard: int,
        *,
        schema: dict[str, Any] | None = None,
    ) -> None:
        if samples_per_shard < 1:
            raise UserError(f"samples_per_shard={samples_per_shard} must be at least 1")
        if directory.exists() and not _is_replaceable(directory):
            raise UserError(
                f"{directory} holds something else than shards: not overwritten; name another"
            )
        self.directory = directory
        self.name = name
        self.samples_per_shard = samples_per_shard
        self._context = ExitStack()
        self._file: IO[bytes] | None = None
        self._offset = 0
        self._sha256 = hashlib.sha256()
        self._schema = schema
        self._shards: list[dict[str, Any]] = []
        self._rows: list[IndexRow] = []
        self._attributions: list[Attribution] = []

    def __enter__(self) -> "ShardWriter":
        self._building = self._context.enter_context(building_folder(self.directory))
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        self._context.close()

    def add(self, uid: str, members: dict[str, bytes]) -> None:
        """Append one sample; uids ascend, and every sample of a set has the same members."""
        if "." in uid or not uid.isascii():
            raise ValueError(f"uid {uid!r} holds a dot, where webdataset would cut it, or no ASCII")
        if self._rows and uid <= self._rows[-1].uid:
            raise ValueError(f"uid {uid!r} comes after {self._rows[-1].uid!r}: sort them")
        self._check_members(uid, members)
        block = sample_block(uid, members)
        if self._file is None:
            self._open_shard()
        assert self._file is not None
        sizes = tuple(len(members[name]) for name in sorted(members))
        number = len(self._shards) - 1
        self._rows.append(IndexRow(uid, number, self._offset, sizes, sample_digest(block)))
        self._note_attribution(members)
        self._write(block)
        self._shards[-1]["num_samples"] += 1
        if self._shards[-1]["num_samples"] == self.samples_per_shard:
            self._close_shard()

    def adopt(
        self, shard: Path, entry: dict[str, Any], rows: Sequence[IndexRow], meta: Sequence[bytes]
    ) -> None:
        """Take a whole shard of an older set as it is: a second link to the same bytes.

        Args:
            shard: the tar.
            entry: what the older manifest says of it.
            rows: of the older index.
            meta: the samples' meta.json, if they have one.
        """
        assert self._file is None
        target = self._building / entry["name"]
        try:
            os.link(shard, target)
        except OSError:  # a file system without links
            shutil.copyfile(shard, target)
            sync(target)
        self._shards.append(dict(entry))
        self._rows.extend(rows)
        for content in meta:
            self._note_attribution({"meta.json": content})

    def finish(self, extra: dict[str, Any]) -> dict[str, Any]:
        """Write index, attribution and manifest, and move the set into place.

        Args:
            extra: what the manifest says besides, such as the render config's hash.

        Returns:
            The manifest.
        """
        if self._file is not None:
            self._close_shard()
        if self._schema is None:
            raise ValueError("a set of shards needs at least one sample")
        index_of_rows(self._rows).save(self._building / INDEX_NAME)
        sync(self._building / INDEX_NAME)
        files = [INDEX_NAME]
        if self._attributions:
            content = attribution_csv(self._attributions)
            write_durably(self._building / ATTRIBUTION_NAME, content)
            files.append(ATTRIBUTION_NAME)
        manifest = {
            "version": MANIFEST_VERSION,
            "set_version": 1,
            "conventions": CONVENTIONS_VERSION,
            "num_samples": len(self._rows),
            "members": self._schema,
            "files": {name: file_entry(self._building / name) for name in files},
            "shards": self._shards,
            **extra,
        }
        text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False)
        write_durably(self._building / MANIFEST_NAME, (text + "\n").encode())
        replace_folder(self._building, self.directory)
        return manifest

    def _check_members(self, uid: str, members: dict[str, bytes]) -> None:
        if self._schema is None:
            self._schema = describe_members(members)
        if sorted(members) != sorted(self._schema):
            raise ValueError(
                f"sample {uid} has members {sorted(members)}, the set has {sorted(self._schema)}"
            )

    def _note_attribution(self, members: dict[str, bytes]) -> None:
        if "meta.json" in members and (line := attribution_of(members["meta.json"])) is not None:
            self._attributions.append(line)

    def _open_shard(self) -> None:
        name = f"{self.name}-{len(self._shards):06d}.tar"
        self._shards.append({"name": name, "num_samples": 0})
        self._file = (self._building / name).open("wb")
        self._offset, self._sha256 = 0, hashlib.sha256()

    def _write(self, content: bytes) -> None:
        assert self._file is not None
        self._file.write(content)
        self._sha256.update(content)
        self._offset += len(content)

    def _close_shard(self) -> None:
        assert self._file is not None
        self._write(end_of_shard(self._offset))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        num_samples = self._shards[-1]["num_samples"]
        self._shards[-1] |= {
            "bytes": self._offset,
            "sha256": self._sha256.hexdigest(),
            "first_uid": self._rows[-num_samples].uid,
            "last_uid": self._rows[-1].uid,
        }


def _is_replaceable(directory: Path) -> bool:
    if not directory.is_dir():
        return False
    return (directory / MANIFEST_NAME).exists() or not any(directory.iterdir())
