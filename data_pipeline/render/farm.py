"""A farm of Blender workers: hands out assets, bounds them in time, survives their crashes."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from data_pipeline.contract import UserError

RECYCLE_AFTER = 50
"""Assets per worker process: Blender's memory creeps by some MB with every one."""

START_TIMEOUT_S = 240.0
"""A worker that has not imported bpy by then never will (1.2 s is usual)."""

TAIL_CHARACTERS = 2000

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """What became of one job.

    Args:
        uid: of the asset.
        reason: None when the sample is finished, else a key of `failures.REASONS`.
        message: one line about a failure.
        figures: `seconds` by stage, and the worker's peak `rss_mb`, where known.
        log_tail: the last lines that Blender printed about a failed asset.
    """

    uid: str
    reason: str | None = None
    message: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    log_tail: str = ""


class Worker:
    """One worker process, in a process group of its own.

    Args:
        python: interpreter of Blender's environment.
        settings: what `worker.main` expects.
        log_path: where what Blender prints goes.
    """

    def __init__(self, python: Path, settings: dict[str, Any], log_path: Path):
        self.log_path = log_path
        self.job: dict[str, Any] | None = None
        self.ready = False
        self.num_done = 0
        self.deadline = time.monotonic() + START_TIMEOUT_S
        self._log_start = 0
        self._received = b""
        request_read, request_write = os.pipe()
        reply_read, reply_write = os.pipe()
        threads = str(settings["threads"])
        environment = os.environ | {
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "TMPDIR": str(log_path.parent.absolute()),  # a killed Blender cannot clear its own
        }
        command = [
            str(python), "-m", "data_pipeline.render.blender.worker",
            "--requests", str(request_read), "--replies", str(reply_write),
            "--parent", str(os.getpid()), "--settings", json.dumps(settings),
        ]  # fmt: skip
        with log_path.open("wb") as log:
            # A session of its own: Ctrl-C reaches the parent alone, which then ends the group.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=(request_read, reply_write),
                start_new_session=True,
            )
        os.close(request_read)
        os.close(reply_write)
        self._requests: IO[bytes] = os.fdopen(request_write, "wb", buffering=0)
        self.replies: IO[bytes] = os.fdopen(reply_read, "rb", buffering=0)
        os.set_blocking(reply_read, False)

    def send(self, job: dict[str, Any], timeout_s: float) -> None:
        """Start a job. A worker that died meanwhile shows as an end of its replies."""
        self.job = job
        self.deadline = time.monotonic() + timeout_s
        self._log_start = self.log_path.stat().st_size
        with contextlib.suppress(BrokenPipeError):  # `receive` meets the end and reports the crash
            self._requests.write(json.dumps(job).encode() + b"\n")

    def receive(self) -> tuple[list[dict[str, Any]], bool]:
        """Return the replies that have arrived, and whether the worker's end is closed."""
        content = self.replies.read(1 << 16)
        if content is None:
            return [], False
        *lines, self._received = (self._received + content).split(b"\n")
        return [json.loads(line) for line in lines], not content

    def log_tail(self) -> str:
        """Return the end of what Blender printed during the job."""
        text = self.log_path.read_bytes()[self._log_start :].decode(errors="replace")
        return text[-TAIL_CHARACTERS:].strip()

    def kill(self) -> int:
        """End the whole process group at once and return the exit status."""
        self._requests.close()
        self.replies.close()
        with contextlib.suppress(ProcessLookupError):  # gone already: wait() reaps it
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()


class Farm:
    """Workers, used as a context manager: leaving it leaves no process behind.

    Args:
        python: interpreter of Blender's environment.
        settings: `spec` (fields of RenderSpec), `config_hash`, `threads` (of one worker).
        num_workers: processes at most; fewer when there are fewer jobs.
        timeout_s: wall-clock seconds that one asset may take.
        logs: existing folder for what the workers print, and for their temporary files.
    """

    def __init__(
        self,
        python: Path,
        settings: dict[str, Any],
        *,
        num_workers: int,
        timeout_s: float,
        logs: Path,
    ):
        self._python, self._settings, self._logs = python, settings, logs
        self._num_workers, self._timeout_s = num_workers, timeout_s
        self._workers: list[Worker] = []
        self._selector = selectors.DefaultSelector()
        self._num_started = 0

    def __enter__(self) -> "Farm":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in list(self._workers):
            self._retire(worker)
        self._selector.close()

    def run(self, jobs: Iterable[dict[str, Any]]) -> Iterator[Outcome]:
        """Yield an outcome for every job, in the order in which they end.

        Args:
            jobs: as `worker.render_asset` takes them; drawn when a worker is free.

        Raises:
            UserError: the workers cannot start at all.
        """
        waiting = iter(jobs)
        drained = False
        while True:
            while not drained and self._has_room():
                job = next(waiting, None)
                if job is None:
                    drained = True
                else:
                    self._dispatch(job)
            busy = [worker for worker in self._workers if worker.job is not None]
            if drained and not busy:
                return
            for worker in self._wait(busy):
                yield from self._advance(worker)

    def _has_room(self) -> bool:
        num_busy = sum(worker.job is not None for worker in self._workers)
        return num_busy < self._num_workers

    def _start(self) -> Worker:
        self._num_started += 1
        log_path = self._logs / f"worker-{self._num_started}.log"
        worker = Worker(self._python, self._settings, log_path)
        self._workers.append(worker)
        self._selector.register(worker.replies, selectors.EVENT_READ, worker)
        return worker

    def _dispatch(self, job: dict[str, Any]) -> None:
        """Give the job to an idle worker, starting one if there is none."""
        idle = next((worker for worker in self._workers if worker.job is None), None)
        worker = idle or self._start()
        # Before it is ready a worker's clock covers its start; `_advance` sets the asset's own.
        worker.send(job, self._timeout_s if worker.ready else START_TIMEOUT_S)

    def _wait(self, busy: list[Worker]) -> list[Worker]:
        """Return the workers that have something to say or are late."""
        pause = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
        speaking = [key.data for key, _ in self._selector.select(min(pause, 1.0))]
        now = time.monotonic()
        return speaking + [w for w in busy if w not in speaking and w.deadline <= now]

    def _advance(self, worker: Worker) -> Iterator[Outcome]:
        replies, closed = worker.receive()
        for reply in replies:
            if "ready" in reply:
                worker.ready = True
                worker.deadline = time.monotonic() + self._timeout_s
            else:
                yield self._finish(worker, reply)
        if closed:
            yield from self._bury(worker)
        elif worker.job is not None and worker.deadline <= time.monotonic():
            if not worker.ready:
                self._cannot_start(worker)
            job, tail = worker.job, worker.log_tail()
            self._retire(worker)
            message = f"not done after {self._timeout_s:g} s"
            yield Outcome(job["uid"], "timeout", message, log_tail=tail)
        elif worker.job is None and worker.num_done >= RECYCLE_AFTER:
            self._retire(worker)

    def _finish(self, worker: Worker, reply: dict[str, Any]) -> Outcome:
        tail = worker.log_tail() if reply["reason"] else ""
        worker.job = None
        worker.num_done += 1
        figures = {key: reply[key] for key in ("seconds", "rss_mb")}
        return Outcome(reply["uid"], reply["reason"], reply["message"], figures, tail)

    def _bury(self, worker: Worker) -> Iterator[Outcome]:
        """Report the job of a worker that ended by itself."""
        if not worker.ready:
            self._cannot_start(worker)
        job, tail = worker.job, worker.log_tail()
        status = self._retire(worker)
        if job is None:
            return
        if status == -signal.SIGKILL:  # not by us: on Linux that is the kernel, short of memory
            yield Outcome(job["uid"], "oom", "killed, most likely for memory", {}, tail)
        else:
            how = f"signal {-status}" if status < 0 else f"exit status {status}"
            yield Outcome(job["uid"], "crash", f"Blender died ({how})", {}, tail)

    def _retire(self, worker: Worker) -> int:
        self._workers.remove(worker)
        self._selector.unregister(worker.replies)
        return worker.kill()

    def _cannot_start(self, worker: Worker) -> None:
        lines = worker.log_path.read_text(errors="replace").strip().splitlines() or ["no output"]
        hint = "run `make install` again"
        if ".so" in lines[-1]:
            hint = (
                "install the system libraries that Blender needs: apt-get install libx11-6 "
                "libxrender1 libxxf86vm1 libxfixes3 libxi6 libxkbcommon0 libsm6 libgl1 libegl1"
            )
        raise UserError(f"the Blender worker ({self._python}) does not start: {lines[-1]}: {hint}")
