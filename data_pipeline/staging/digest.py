"""The newest record of every asset, quick to load and to query.

Reading a million JSON lines takes half a minute, so what they come to is kept in
`ledger/digest.sqlite`: an SQLite file that is written in private, published by a rename and only
ever read (`immutable`: no locks, no WAL, neither of which network file systems do well). It says
how far it has read each ledger file; the rest is read from there. It may be deleted at any time.
"""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_pipeline.staging.ledger import AssetState, LedgerReader

DIGEST_NAME = "digest.sqlite"

DIGEST_VERSION = 1

SAVE_AFTER_RECORDS = 2_000
"""So many records beside the digest are read in well under a second."""

SCHEMA = f"""
CREATE TABLE latest (
    uid TEXT PRIMARY KEY, status TEXT, reason TEXT, attempts INTEGER, give_up_at INTEGER,
    run_id TEXT, host TEXT, time REAL, seconds REAL, rss_mb REAL, record TEXT
) WITHOUT ROWID;
CREATE TABLE offsets (name TEXT PRIMARY KEY, bytes INTEGER);
PRAGMA user_version = {DIGEST_VERSION};
"""

UPSERT = """
INSERT INTO latest VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (uid) DO UPDATE SET
    status = excluded.status, reason = excluded.reason, attempts = excluded.attempts,
    give_up_at = excluded.give_up_at, run_id = excluded.run_id, host = excluded.host,
    time = excluded.time, seconds = excluded.seconds, rss_mb = excluded.rss_mb,
    record = excluded.record
WHERE excluded.attempts > attempts
   OR (excluded.attempts = attempts AND (excluded.status = 'done') >= (status = 'done'))
"""


class Digest:
    """What all ledger files together say, in memory; `update` reads what has been added since.

    Args:
        folder: the folder `ledger` of a staging folder; may be missing.
    """

    def __init__(self, folder: Path):
        self._path = folder / DIGEST_NAME
        self.database = _load(self._path)
        self._reader = LedgerReader(folder, dict(self.database.execute("SELECT * FROM offsets")))
        self.num_unsaved = 0
        self.update()

    @property
    def num_damaged(self) -> int:
        """Lines that could not be read, torn ones at a file's end left out."""
        return self._reader.num_damaged

    def update(self) -> list[str]:
        """Read what the writers have appended, and return the uids that it speaks of."""
        self._reader.forget_cached()
        uids: list[str] = []
        self.database.executemany(UPSERT, _rows(self._reader.new_records(), uids))
        self.num_unsaved += len(uids)
        return uids

    def states(self, uids: Iterable[str]) -> dict[str, AssetState]:
        """Return the state of those of the uids that have ever been tried."""
        query = "SELECT reason, attempts, give_up_at, run_id FROM latest WHERE uid = ?"
        found = ((uid, self.database.execute(query, (uid,)).fetchone()) for uid in uids)
        return {uid: AssetState(*row) for uid, row in found if row is not None}

    def failures(self) -> dict[str, dict[str, Any]]:
        """Return the newest record of every asset whose newest record is a failure, by uid."""
        rows = self.database.execute("SELECT uid, record FROM latest WHERE status = 'failed'")
        return {uid: json.loads(record) for uid, record in rows}

    def save(self, scratch: Path) -> None:
        """Publish the digest for the next reader.

        Args:
            scratch: a folder of this process alone, on the same file system.
        """
        with self.database:
            self.database.execute("DELETE FROM offsets")
            self.database.executemany(
                "INSERT INTO offsets VALUES (?, ?)", self._reader.offsets.items()
            )
        temporary = scratch / DIGEST_NAME
        with contextlib.closing(sqlite3.connect(f"file:{temporary}?nolock=1", uri=True)) as file:
            file.execute("PRAGMA journal_mode = OFF")
            self.database.backup(file)
        descriptor = os.open(temporary, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        os.replace(temporary, self._path)
        self.num_unsaved = 0


def _load(path: Path) -> sqlite3.Connection:
    """Return an in-memory copy of the published digest, or an empty one."""
    memory = sqlite3.connect(":memory:")
    if path.is_file():
        uri = f"{path.absolute().as_uri()}?immutable=1"
        with contextlib.suppress(sqlite3.DatabaseError):  # then it is read from the ledger anew
            with contextlib.closing(sqlite3.connect(uri, uri=True)) as file:
                file.backup(memory)
            version = memory.execute("PRAGMA user_version").fetchone()[0]
            if version == DIGEST_VERSION:
                return memory
        memory.close()
        memory = sqlite3.connect(":memory:")
    memory.executescript(SCHEMA)
    return memory


def _rows(records: Iterable[dict[str, Any]], uids: list[str]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of records, adding their uids to `uids`."""
    for record in records:
        uids.append(record["uid"])
        state = AssetState.of(record)
        failed = record["status"] == "failed"
        yield (
            record["uid"], record["status"], state.reason, state.attempts, state.give_up_at,
            state.run_id, record.get("host"), record.get("time"),
            record.get("seconds", {}).get("total"), record.get("rss_mb"),
            json.dumps(record) if failed else None,
        )  # fmt: skip
