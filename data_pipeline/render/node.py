"""What one process of a run does: draws attempts, has them rendered, keeps what comes out."""

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.render.failures import AssetFailure
from data_pipeline.render.farm import Farm, Limits, Outcome
from data_pipeline.render.limits import MAX_BYTES
from data_pipeline.render.options import RenderOptions, available_cpus
from data_pipeline.render.precheck import check_file
from data_pipeline.render.progress import Progress
from data_pipeline.render.rejected import keep_picture
from data_pipeline.render.work_queue import Attempt, LeaseLostError, WorkQueue
from data_pipeline.sources import Asset
from data_pipeline.sources.fetching import Fetching
from data_pipeline.staging import RenderSession, Staging

ATTEMPTS_IF_KILLED = 3
"""Attempts at least before an asset is given up whose runs were killed: it may not be to blame."""


class Node:
    """One process of a run.

    Args:
        python: interpreter of Blender's environment.
        record: contents of render.json.
        staging: the folder.
        session: the right to write to it.
        options: how to go about it.
        total: assets of the source.
    """

    def __init__(
        self,
        python: Path,
        record: dict[str, Any],
        staging: Staging,
        session: RenderSession,
        options: RenderOptions,
        total: int,
    ):
        self._python, self._record, self._options, self._total = python, record, options, total
        self._staging, self._session = staging, session
        local = options.scratch is not None
        self._scratch = Path(options.scratch or "") / session.writer if local else session.scratch
        self._in_flight: dict[str, Attempt] = {}

    def __enter__(self) -> "Node":
        self._scratch.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)

    def work_off(self, queue: WorkQueue, progress: Progress) -> bool:
        """Render until every asset is settled, here or elsewhere.

        Returns:
            False if another process has taken this one for dead, and its work: begin afresh.
        """
        self._in_flight.clear()
        device = self._record["render_spec"]["device"]
        num_workers = self._options.num_workers(queue.num_unsettled, device)
        settings = {
            "spec": self._record["render_spec"],
            "config_hash": self._record["config_hash"],
            "threads": max(1, available_cpus() // num_workers),
        }
        limits = Limits(
            timeout_s=self._options.timeout_s,
            rss_limit_mb=self._options.rss_limit_mb,
            recycle_after=self._options.recycle_after,
        )
        farm = Farm(
            self._python,
            settings,
            num_workers=num_workers,
            limits=limits,
            logs=self._scratch,
            gpus=self._options.gpu_names(device),
        )
        try:
            with Fetching() as fetching, farm:
                for outcome in farm.run(self._jobs(queue, progress, fetching)):
                    self._keep(self._in_flight.pop(outcome.uid), outcome, queue, progress)
        except LeaseLostError as lost:
            progress.note(f"another process has taken over chunk {lost}: beginning afresh")
            return False
        return True

    def _jobs(
        self, queue: WorkQueue, progress: Progress, fetching: Fetching
    ) -> Iterator[dict[str, Any] | None]:
        for attempt in queue.attempts():
            progress.show(self._total - queue.num_unsettled)
            if attempt is None:
                yield None
                continue
            asset = attempt.asset
            fetching.start(queue.following())
            while not fetching.is_here(asset):
                yield None  # the farm goes on watching its workers
            try:
                if problem := fetching.wait_for(asset):
                    raise AssetFailure("unreadable", problem)
                check_file(asset.path)
            except AssetFailure as failure:
                outcome = Outcome(asset.uid, failure.reason, failure.message)
                self._keep(attempt, outcome, queue, progress)
            else:
                self._in_flight[asset.uid] = attempt
                self._session.begin(asset.uid, self._record_if_killed(attempt))
                yield self._job(asset)
        progress.show(self._total - queue.num_unsettled)

    def _job(self, asset: Asset) -> dict[str, Any]:
        return {
            "uid": asset.uid,
            "path": str(asset.path.absolute()),
            "folder": str((self._scratch / asset.uid).absolute()),
            "captions": list(asset.captions),
            "licence": asset.licence,
            "author": asset.author,
            "source": asset.source,
            "attributes": dict(asset.attributes),
        }

    def _keep(
        self, attempt: Attempt, outcome: Outcome, queue: WorkQueue, progress: Progress
    ) -> None:
        """Publish a finished sample, remove what is left of a failed one, and note either."""
        queue.check_claim(attempt)
        folder, uid = self._scratch / outcome.uid, outcome.uid
        picture = self._staging.rejected_picture(uid)
        if outcome.reason is None:
            self._session.publish(folder, uid)
            picture.unlink(missing_ok=True)
        else:
            keep_picture(folder, picture, self._session.scratch)
            progress.note(f"{uid}: {outcome.reason}: {outcome.message}")
        shutil.rmtree(folder, ignore_errors=True)
        self._session.append(self._ledger_record(attempt, outcome))
        if queue.settle(attempt, outcome.reason):
            progress.count(outcome.reason)
            if attempt.asset.store is not None:
                attempt.asset.store.release(attempt.asset)

    def _record_of(self, attempt: Attempt) -> dict[str, Any]:
        return {
            "uid": attempt.asset.uid,
            "attempts": attempt.number,
            "give_up_at": attempt.give_up_at,
            "config_hash": self._record["config_hash"],
            "timeout_s": self._options.timeout_s,
            "rss_limit_mb": self._options.rss_limit_mb,
        }

    def _record_if_killed(self, attempt: Attempt) -> dict[str, Any]:
        return self._record_of(attempt) | {
            "status": "failed",
            "reason": "crash",
            "message": "the run that rendered it was killed, or its node died",
            "give_up_at": max(attempt.give_up_at, ATTEMPTS_IF_KILLED),
        }

    def _ledger_record(self, attempt: Attempt, outcome: Outcome) -> dict[str, Any]:
        record = self._record_of(attempt)
        record["status"] = "done" if outcome.reason is None else "failed"
        record |= {key: value for key, value in outcome.figures.items() if value is not None}
        if outcome.reason is not None:
            record |= {"reason": outcome.reason, "message": outcome.message}
            record |= {"log_tail": outcome.log_tail} if outcome.log_tail else {}
            if "input_sha256" not in record:
                record["input_sha256"] = _sha256(attempt.asset.path)
        return record


def _sha256(path: Path) -> str | None:
    """Return the hash of a file, or None if it is too large, cannot be read, or is a pipe."""
    with contextlib.suppress(OSError):
        if path.is_file() and path.stat().st_size <= MAX_BYTES:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    return None
