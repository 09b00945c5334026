"""One process that renders into a staging folder, beside any number of others."""

import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.contract import LIT_MEMBERS, SAMPLE_MEMBERS
from data_pipeline.staging.leases import Leases
from data_pipeline.staging.ledger import LedgerWriter
from data_pipeline.staging.sample_files import SampleFiles

BEGUN_SUFFIX = ".begun"
"""Of the file in a scratch folder that says which asset is being rendered."""


def writer_name() -> str:
    """Return a name for this process that no other has, on any node."""
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in node)
    return f"{safe[:40]}-{os.getpid()}-{secrets.token_hex(4)}"


class RenderSession:
    """The right to write: claims, a ledger file and a scratch folder of one process.

    Used as a context manager; leaving it, by whatever exception, gives back the claims and removes
    the scratch folder. What a killed process has left behind is removed by the next one, and what
    it was at is noted in the ledger: an asset that takes its node down is not tried for ever.

    Args:
        root: the staging folder; must exist.
        samples: its finished samples.
        lease_s: see `Leases`.
        run_id: name of the run, common to all its nodes.
        num_assets: of the source, for `stats`.
    """

    def __init__(
        self, root: Path, samples: SampleFiles, *, lease_s: float, run_id: str, num_assets: int
    ):
        self.writer = writer_name()
        self.run_id = run_id
        self.scratch = root / "scratch" / self.writer
        self._samples = samples
        self._root = root
        self._num_assets = num_assets
        for name in ("leases", "ledger", "scratch", "samples"):
            (root / name).mkdir(exist_ok=True)
        self.leases = Leases(root / "leases", self.writer, lease_s)
        self._ledger = LedgerWriter(root / "ledger" / f"{self.writer}.jsonl")

    def __enter__(self) -> "RenderSession":
        self.leases.__enter__()
        self.scratch.mkdir()
        self.clear_after_the_dead()
        about = {
            "run_id": self.run_id,
            "host": socket.gethostname(),
            "started": time.time(),
            "num_assets": self._num_assets,
        }
        temporary = self.scratch / "run.json"
        temporary.write_text(json.dumps(about, sort_keys=True) + "\n")
        os.replace(temporary, self._root / "ledger" / f"{self.writer}.run.json")
        return self

    def __exit__(self, *exception: object) -> None:
        self._ledger.close()
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.leases.__exit__(*exception)

    def begin(self, uid: str, if_killed: Mapping[str, Any]) -> None:
        """Leave word of an attempt, until its record is appended.

        Args:
            uid: of the asset.
            if_killed: the record to be appended by others if this process dies before.
        """
        temporary = self.scratch / "begun.json"
        temporary.write_text(json.dumps(dict(if_killed)))
        os.replace(temporary, self.scratch / f"{uid}{BEGUN_SUFFIX}")

    def publish(self, folder: Path, uid: str) -> None:
        """Make the sample whose members lie in `folder` visible, all at once.

        Raises:
            ValueError: the folder does not hold exactly the members of a sample.
        """
        held = tuple(sorted(os.listdir(folder)))
        if tuple(name for name in held if name not in LIT_MEMBERS) != SAMPLE_MEMBERS:
            raise ValueError(f"sample {uid} holds {held}, not {SAMPLE_MEMBERS}")
        self.publish_members({name: (folder / name).read_bytes() for name in held}, uid)

    def publish_members(self, members: Mapping[str, bytes], uid: str) -> None:
        """Make a sample visible, all at once."""
        self._samples.publish(uid, members, self.scratch)

    def append(self, record: dict[str, Any]) -> None:
        """Append a record, with at least `uid` and `status`, to this process's ledger file."""
        about = {
            "run_id": self.run_id,
            "writer": self.writer,
            "host": socket.gethostname(),
            "time": time.time(),
        }
        self._ledger.append(about | record)
        (self.scratch / f"{record['uid']}{BEGUN_SUFFIX}").unlink(missing_ok=True)

    def clear_after_the_dead(self) -> None:
        """Free the claims of processes that have died; note what they were at; tidy up."""
        self.leases.take_over()
        folders = list((self._root / "scratch").iterdir())  # listed first: owners come before them
        live = self.leases.live_writers()
        for folder in folders:
            if folder.name not in live:
                self._inherit(folder)
                shutil.rmtree(folder, ignore_errors=True)

    def _inherit(self, folder: Path) -> None:
        """Append the records of attempts that ended with the process which had this scratch."""
        for word in sorted(folder.glob(f"*{BEGUN_SUFFIX}")):
            ours = self.scratch / word.name
            try:
                os.rename(word, ours)
                record = json.loads(ours.read_text())
            except FileNotFoundError:
                continue  # another process was faster
            except ValueError:
                record = None  # the power failed before it was on disk: nothing to go by
            if record is not None and not self._samples.path(record["uid"]).exists():
                self.append(record)
            ours.unlink(missing_ok=True)
