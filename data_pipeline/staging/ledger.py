"""The ledger: one line for every attempt at an asset, in append-only files, one for each writer.

    ledger/{writer}.jsonl     written by one process only, never changed, never deleted

No two processes append to one file (on NFS that loses lines), nothing is locked, and a line that a
crash has torn is left out. The newest record of an asset is the one with the most `attempts`: the
holder of the asset's chunk counts them, so no clock decides. `snapshot.py` keeps a digest for quick
reading.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

SUFFIX = ".jsonl"

BLOCK_BYTES = 1 << 24


class LedgerWriter:
    """Appends to the file of one writer, which appears with the first record.

    Args:
        path: `ledger/{writer}.jsonl`, of a process that writes to no other.
    """

    def __init__(self, path: Path):
        self._path = path
        self._file: IO[bytes] | None = None

    def append(self, record: dict[str, Any]) -> None:
        """Write a record, with at least `uid` and `status`, and return when it is on disk."""
        if self._file is None:
            self._file = self._path.open("xb")
        line = json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n"
        # Names of files that are no UTF-8 reach JSON as the escapes that it has for them.
        self._file.write(line.encode(errors="backslashreplace"))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._file is not None:
            self._file.close()


class LedgerReader:
    """Reads every writer's file from where it stopped the last time.

    Args:
        folder: the folder `ledger`; may be missing.
        offsets: bytes of each file that need not be read (again), by file name.
    """

    def __init__(self, folder: Path, offsets: dict[str, int] | None = None):
        self.folder = folder
        self.offsets = dict(offsets or {})
        self.num_damaged = 0

    def new_records(self) -> Iterator[dict[str, Any]]:
        """Yield the records that were appended since the last call, file by file."""
        try:
            names = sorted(n for n in os.listdir(self.folder) if n.endswith(SUFFIX))
        except FileNotFoundError:
            return
        for name in names:
            yield from self._rest(name)

    def forget_cached(self) -> None:
        """Have the next listing come from the server (`SampleFiles.forget_cached`)."""
        if self.folder.is_dir():
            os.utime(self.folder)

    def _rest(self, name: str) -> Iterator[dict[str, Any]]:
        offset = self.offsets.get(name, 0)
        with (self.folder / name).open("rb") as file:  # opening shows NFS's newest state
            if os.fstat(file.fileno()).st_size <= offset:
                return
            file.seek(offset)
            rest = b""
            while block := file.read(BLOCK_BYTES):
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    offset += len(line) + 1
                    self.offsets[name] = offset
                    record = _parse(line)
                    if record is None:
                        self.num_damaged += 1
                    else:
                        yield record
            # What follows the last newline is torn, or still being written: read next time.


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "uid" in record and "status" in record else None


@dataclass(frozen=True, slots=True)
class AssetState:
    """What is known of one asset from its newest record.

    Args:
        reason: of failure; None when a sample was finished.
        attempts: how often it was tried, over all runs.
        give_up_at: attempts from which on a failure that may pass is final.
        run_id: of the run that tried it last.
    """

    reason: str | None
    attempts: int
    give_up_at: int
    run_id: str

    @staticmethod
    def of(record: dict[str, Any]) -> "AssetState":
        """Return the state that a record says."""
        return AssetState(
            reason=record.get("reason"),
            attempts=record.get("attempts", 1),
            give_up_at=record.get("give_up_at", 1),
            run_id=record.get("run_id", ""),
        )
