"""A farm of Blender workers: hands out assets, bounds them in time and memory, survives crashes."""

import selectors
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.contract import UserError
from data_pipeline.render.worker_process import START_TIMEOUT_S, WorkerProcess, rss_by_group

LOOK_S = 0.25
"""How often the workers' time and memory are looked at."""

LOOK_COST = 0.05
"""Share of a core that looking may cost; on a machine with many processes it becomes rarer."""

FAILED_STARTS = 3
"""So many workers in a row that die before they are ready mean that none ever will be."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one asset may cost.

    Args:
        timeout_s: wall-clock seconds.
        rss_limit_mb: resident memory of its worker with its child processes; None: no limit.
        recycle_after: assets after which a worker is replaced, as Blender's memory creeps.

    Raises:
        UserError: one of them is not positive.
    """

    timeout_s: float = 300.0
    rss_limit_mb: float | None = None
    recycle_after: int = 50

    def __post_init__(self) -> None:
        for name in ("timeout_s", "rss_limit_mb", "recycle_after"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name}={value} must be positive")


@dataclass(frozen=True)
class Outcome:
    """What became of one job.

    Args:
        uid: of the asset.
        reason: None when the sample is finished, else a key of `failures.REASONS`.
        message: one line about a failure.
        figures: what is known of `seconds` by stage, peak `rss_mb`, `device`, `input_sha256`.
        log_tail: the last lines that Blender printed about a failed asset.
    """

    uid: str
    reason: str | None = None
    message: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    log_tail: str = ""


class Farm:
    """Workers, used as a context manager: leaving it leaves no process behind.

    Args:
        python: interpreter of Blender's environment.
        settings: `spec` (fields of RenderSpec), `config_hash`, `threads` (of one worker).
        num_workers: processes at most; fewer when there are fewer jobs.
        limits: of every asset.
        logs: existing folder for what the workers print, and for their temporary files.
        gpus: names of GPUs; worker i has the i-th (modulo their number) to itself. None: no GPU.
    """

    def __init__(
        self,
        python: Path,
        settings: dict[str, Any],
        *,
        num_workers: int,
        limits: Limits,
        logs: Path,
        gpus: tuple[str, ...] = (),
    ):
        self._python, self._settings, self._logs = python, settings, logs
        self._num_workers, self._limits, self._gpus = num_workers, limits, gpus
        self._slots: dict[int, WorkerProcess] = {}
        self._selector = selectors.DefaultSelector()
        self._num_started = 0
        self._failed_starts = 0
        self._next_look = 0.0
        self._returned: list[dict[str, Any]] = []

    def __enter__(self) -> "Farm":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in list(self._slots.values()):
            self._retire(worker)
        self._selector.close()

    def run(self, jobs: Iterable[dict[str, Any] | None]) -> Iterator[Outcome]:
        """Yield an outcome for every job, in the order in which they end.

        Args:
            jobs: as `worker.render_asset` takes them; drawn when a worker is free. None: there is
                no job now, but there may be one later.

        Raises:
            UserError: the workers cannot start at all.
        """
        source = iter(jobs)
        drained = False
        while True:
            while len(busy := self._busy()) < self._num_workers:
                job = self._returned.pop() if self._returned else next(source, self)
                drained = job is self
                if not isinstance(job, dict):
                    break
                self._dispatch(job)
            if drained and not busy:
                return
            for worker in self._wait():
                yield from self._advance(worker)

    def _busy(self) -> list[WorkerProcess]:
        return [worker for worker in self._slots.values() if worker.job is not None]

    def _dispatch(self, job: dict[str, Any]) -> None:
        """Give the job to an idle worker, starting one if there is none."""
        idle = next((worker for worker in self._slots.values() if worker.job is None), None)
        worker = idle or self._start()
        # Before it is ready a worker's clock covers its start; `_advance` sets the asset's own.
        worker.send(job, self._limits.timeout_s if worker.ready else START_TIMEOUT_S)

    def _start(self) -> WorkerProcess:
        slot = next(i for i in range(self._num_workers) if i not in self._slots)
        self._num_started += 1
        log_path = self._logs / f"worker-{self._num_started}.log"
        gpu = self._gpus[slot % len(self._gpus)] if self._gpus else None
        worker = WorkerProcess(self._python, self._settings, log_path, gpu)
        self._slots[slot] = worker
        self._selector.register(worker.replies, selectors.EVENT_READ, worker)
        return worker

    def _wait(self) -> list[WorkerProcess]:
        """Return the workers to attend to: those that speak, and now and then all of them."""
        pause = max(0.0, min(LOOK_S, self._next_look - time.monotonic()))
        if not self._slots:
            time.sleep(LOOK_S)
            return []
        speaking = [key.data for key, _ in self._selector.select(pause)]
        start = time.monotonic()
        if start < self._next_look:
            return speaking
        rss = rss_by_group()
        for worker in self._slots.values():
            worker.note_rss(rss.get(worker.process.pid, 0.0))
        cost = time.monotonic() - start
        self._next_look = start + max(LOOK_S, cost / LOOK_COST)
        return list(self._slots.values())

    def _advance(self, worker: WorkerProcess) -> Iterator[Outcome]:
        replies, closed = worker.receive()
        for reply in replies:
            if "ready" in reply:
                worker.ready = True
                self._failed_starts = 0
                worker.deadline = time.monotonic() + self._limits.timeout_s
            else:
                yield self._finish(worker, reply)
        if closed:
            yield from self._bury(worker)
        elif worker.job is not None:
            yield from self._hold_to_limits(worker)
        elif self._is_worn(worker):
            self._retire(worker)

    def _hold_to_limits(self, worker: WorkerProcess) -> Iterator[Outcome]:
        limit = self._limits.rss_limit_mb
        if limit is not None and worker.rss_mb > limit:
            message = f"{worker.rss_mb:.0f} MB; at most {limit:g} MB are allowed"
            yield self._stop(worker, "oom", message)
        elif worker.deadline <= time.monotonic():
            if worker.ready:
                yield self._stop(worker, "timeout", f"not done after {self._limits.timeout_s:g} s")
            else:
                self._start_failed(worker)

    def _is_worn(self, worker: WorkerProcess) -> bool:
        """Return whether an idle worker should make room: old, or with little memory left."""
        limit = self._limits.rss_limit_mb
        is_fat = limit is not None and worker.rss_mb > limit / 2
        return worker.num_done >= self._limits.recycle_after or is_fat

    def _finish(self, worker: WorkerProcess, reply: dict[str, Any]) -> Outcome:
        tail = worker.log_tail() if reply["reason"] else ""
        worker.job = None
        worker.num_done += 1
        figures = {k: v for k, v in reply.items() if k not in ("uid", "reason", "message")}
        figures["rss_mb"] = round(max(worker.peak_rss_mb, reply.get("rss_mb", 0.0)), 1)
        return Outcome(reply["uid"], reply["reason"], reply["message"], figures, tail)

    def _stop(self, worker: WorkerProcess, reason: str, message: str) -> Outcome:
        """End a worker whose asset costs too much."""
        assert worker.job is not None
        uid, tail = worker.job["uid"], worker.log_tail()
        self._retire(worker)
        return Outcome(uid, reason, message, {"rss_mb": round(worker.peak_rss_mb, 1)}, tail)

    def _bury(self, worker: WorkerProcess) -> Iterator[Outcome]:
        """Report the job of a worker that ended by itself."""
        if not worker.ready:
            self._start_failed(worker)
            return
        job, tail = worker.job, worker.log_tail()
        status = self._retire(worker)
        if job is not None:
            reason, message = worker.how_it_died(status)
            yield Outcome(
                job["uid"], reason, message, {"rss_mb": round(worker.peak_rss_mb, 1)}, tail
            )

    def _start_failed(self, worker: WorkerProcess) -> None:
        """Put the job of a worker that did not come up back: it is not the asset's fault."""
        self._failed_starts += 1
        if self._failed_starts >= FAILED_STARTS:
            raise worker.start_failure()
        if worker.job is not None:
            self._returned.append(worker.job)
        self._retire(worker)

    def _retire(self, worker: WorkerProcess) -> int:
        self._slots = {slot: other for slot, other in self._slots.items() if other is not worker}
        self._selector.unregister(worker.replies)
        return worker.kill()
