"""The staging folder: finished samples between `render` and `pack`, and a ledger of attempts.

    STAGING/render.json            what all samples in it were rendered with
    STAGING/ledger.jsonl           one line per attempt, append-only
    STAGING/samples/ab/{uid}/      contract.SAMPLE_MEMBERS, final bytes
    STAGING/scratch/               unfinished samples and worker logs; emptied at every start

A sample becomes visible in one rename, so a folder that exists is complete; the ledger adds times
and reasons, and nothing depends on its last line.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipeline.contract import LIT_MEMBERS, SAMPLE_MEMBERS, UserError


class Staging:
    """A staging folder. Reading needs no lock; `open_for_render` and what follows it does.

    Args:
        root: the folder; created by `open_for_render`.
    """

    def __init__(self, root: Path):
        self.root = Path(root)
        self.ledger_path = self.root / "ledger.jsonl"
        self.scratch = self.root / "scratch"

    # -------------------------------------------------------------------------------- reading

    def sample_dir(self, uid: str) -> Path:
        """Return where the sample lies, whether or not it exists yet."""
        prefix = hashlib.sha256(uid.encode()).hexdigest()[:2]
        return self.root / "samples" / prefix / uid

    def done_uids(self) -> list[str]:
        """Return the uids of all finished samples, sorted."""
        return sorted(folder.name for folder in self.root.glob("samples/??/*"))

    def render_record(self) -> dict[str, Any]:
        """Return render.json.

        Raises:
            UserError: the folder is no staging folder, or the file is damaged.
        """
        path = self.root / "render.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"{self.root} is no staging folder (no render.json): render first"
            ) from None
        except ValueError:
            raise UserError(f"{path} is damaged: render into a new folder") from None

    def records(self) -> list[dict[str, Any]]:
        """Return the ledger's records in the order of writing; a torn last line is left out.

        Raises:
            UserError: another line than the last is damaged.
        """
        if not self.ledger_path.exists():
            return []
        lines = self.ledger_path.read_bytes().split(b"\n")
        records = []
        for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is torn
            try:
                records.append(json.loads(line))
            except ValueError:
                raise UserError(
                    f"{self.ledger_path}:{number} is damaged: delete that line (samples stay)"
                ) from None
        return records

    def failures(self) -> dict[str, dict[str, Any]]:
        """Return, by uid, the last record of every asset whose last attempt failed."""
        last = {record["uid"]: record for record in self.records()}
        return {
            uid: record
            for uid, record in last.items()
            if record["status"] == "failed" and not self.sample_dir(uid).is_dir()
        }

    # -------------------------------------------------------------------------------- writing

    @contextmanager
    def open_for_render(self, record: dict[str, Any]) -> Iterator[None]:
        """Hold the folder for one writer, with an empty scratch folder.

        Args:
            record: the contents of render.json, among them `config_hash`.

        Raises:
            UserError: it holds samples of another config, or another process writes to it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{self.root} is being written by another render: wait for it, or choose "
                    "another out="
                ) from None
            self._check_config(record)
            shutil.rmtree(self.scratch, ignore_errors=True)
            self.scratch.mkdir()
            self._mend_ledger()
            try:
                yield
            finally:
                shutil.rmtree(self.scratch, ignore_errors=True)

    def publish(self, finished: Path, uid: str) -> None:
        """Make the sample in `finished` (a folder on the same disk) visible, all at once.

        Raises:
            ValueError: the folder does not hold exactly the members of a sample.
        """
        held = tuple(sorted(member.name for member in finished.iterdir()))
        if tuple(name for name in held if name not in LIT_MEMBERS) != SAMPLE_MEMBERS:
            raise ValueError(f"sample {uid} holds {held}, not {SAMPLE_MEMBERS}")
        target = self.sample_dir(uid)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(finished, target)

    def append(self, record: dict[str, Any]) -> None:
        """Append a record, with at least `uid` and `status`, to the ledger."""
        line = json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n"
        with self.ledger_path.open("ab") as ledger:
            ledger.write(line.encode())

    def _check_config(self, record: dict[str, Any]) -> None:
        path = self.root / "render.json"
        if not path.exists():
            if any(self.root.glob("samples/??/*")):
                raise UserError(
                    f"{self.root} holds samples but no render.json: choose another out="
                )
            temporary = path.with_suffix(".tmp")
            temporary.write_text(
                json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8"
            )
            os.replace(temporary, path)
            return
        held = self.render_record()
        if held["config_hash"] != record["config_hash"]:
            changed = [
                key for key in record if held.get(key) != record[key] and key != "config_hash"
            ]
            raise UserError(
                f"{self.root} holds samples of another config ({', '.join(changed)} differ): "
                "choose another out=, or the settings in its render.json"
            )

    def _mend_ledger(self) -> None:
        """Cut off a torn last line, so that the next record starts on a line of its own."""
        if not self.ledger_path.exists():
            return
        content = self.ledger_path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            with self.ledger_path.open("r+b") as ledger:
                ledger.truncate(whole)
