"""The staging folder: finished samples between `render` and `pack`, and what became of the rest.

    STAGING/render.json               what all samples in it were rendered with
    STAGING/samples/abc/{uid}.tar     one finished sample (sample_files.py)
    STAGING/ledger/{writer}.jsonl     one line per attempt (ledger.py, digest.py)
    STAGING/leases/                   who works on what (leases.py)
    STAGING/scratch/{writer}/         unfinished samples and worker logs of one process (session.py)
    STAGING/rejected/abc/{uid}.jpg    what was rendered of an asset that failed, for `stats`

The samples are the truth about what is finished; the ledger adds times and reasons. Any number of
processes on any number of nodes may render into one folder, which is all that they share.
"""

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.contract import UserError
from data_pipeline.staging.digest import Digest
from data_pipeline.staging.ledger import LedgerReader
from data_pipeline.staging.sample_files import SampleFiles, chunk_of
from data_pipeline.staging.session import RenderSession

__all__ = ["Digest", "RenderSession", "SampleFiles", "Staging", "chunk_of"]

LEASE_S = 120.0
"""Seconds without a sign of life after which another node takes over a node's work."""


class Staging:
    """A staging folder. Reading needs no lock.

    Args:
        root: the folder; created by `open_for_render`.
    """

    def __init__(self, root: Path):
        self.root = Path(root)
        self.samples = SampleFiles(self.root / "samples")

    def read(self, uid: str) -> dict[str, bytes]:
        """Return a finished sample's members by name, as `contract.SAMPLE_MEMBERS` lists them.

        Raises:
            UserError: there is no such sample, or its file is damaged.
        """
        return self.samples.read(uid)

    def is_sound(self, uid: str) -> bool:
        """Return whether a finished sample can be read, unharmed."""
        try:
            self.read(uid)
        except UserError:
            return False
        return True

    def done_uids(self) -> list[str]:
        """Return the uids of all finished samples, sorted."""
        return sorted(self.samples.uids())

    def rejected_picture(self, uid: str) -> Path:
        """Return where a picture of a failed asset lies, if one was kept."""
        return self.root / "rejected" / chunk_of(uid) / f"{uid}.jpg"

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
        """Return the record of every attempt, writer by writer; torn lines are left out."""
        return list(LedgerReader(self.root / "ledger").new_records())

    def digest(self) -> Digest:
        """Return the newest record of every asset, for queries."""
        return Digest(self.root / "ledger")

    def failures(self) -> dict[str, dict[str, Any]]:
        """Return, by uid, the newest record of every asset whose last attempt failed."""
        return {
            uid: record
            for uid, record in self.digest().failures().items()
            if not self.samples.path(uid).is_file()
        }

    def runs(self) -> list[dict[str, Any]]:
        """Return what the writers noted when they started: run_id, host, started, num_assets."""
        files = (self.root / "ledger").glob("*.run.json")
        return sorted((json.loads(file.read_text()) for file in files), key=lambda r: r["started"])

    def open_for_render(
        self,
        record: dict[str, Any],
        *,
        lease_s: float = LEASE_S,
        run_id: str | None = None,
        num_assets: int = 0,
    ) -> RenderSession:
        """Return a session, to be entered, that writes into this folder beside others.

        Args:
            record: the contents of render.json, among them `config_hash`.
            lease_s: see `Leases`.
            run_id: name of the run, common to all its nodes; a new one by default.
            num_assets: of the source.

        Raises:
            UserError: the folder holds samples of another config.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self._settle_config(record)
        return RenderSession(
            self.root,
            self.samples,
            lease_s=lease_s,
            run_id=run_id or secrets.token_hex(4),
            num_assets=num_assets,
        )

    def _settle_config(self, record: dict[str, Any]) -> None:
        """Write render.json, or agree with the one there: the first node to come decides."""
        path = self.root / "render.json"
        if not path.exists():
            if next(self.samples.uids(), None) is not None:
                raise UserError(
                    f"{self.root} holds samples but no render.json: choose another out="
                )
            temporary = self.root / f".render-{secrets.token_hex(4)}"
            temporary.write_text(
                json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8"
            )
            try:
                os.link(temporary, path)
            except FileExistsError:
                pass  # another node was first
            else:
                return
            finally:
                temporary.unlink()
        held = self.render_record()
        if held["config_hash"] != record["config_hash"]:
            changed = ", ".join(_differences(held, record))
            raise UserError(
                f"{self.root} holds samples of another config ({changed}): "
                "choose another out=, or the settings in its render.json"
            )


def _differences(held: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield what two records of a render differ in, the config hash apart, in words."""
    for key in sorted(held.keys() | wanted.keys()):
        there, here = held.get(key), wanted.get(key)
        name = prefix if key == "render_spec" else f"{prefix}{key}"
        if isinstance(there, dict) and isinstance(here, dict):
            yield from _differences(there, here, name and f"{name}.")
        elif there != here and key != "config_hash":
            yield f"{name} is {there} there and {here} here"
