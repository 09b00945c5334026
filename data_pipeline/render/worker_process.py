"""One Blender worker process, seen from its parent: start, talk, watch its memory, kill."""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import IO, Any

import psutil

from data_pipeline.contract import UserError

START_TIMEOUT_S = 240.0
"""A worker that has not imported bpy by then never will (1.2 s is usual)."""

TAIL_CHARACTERS = 2000

REPOSITORY = Path(__file__).resolve().parents[2]

DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
"""What limits a process to some GPUs, NVIDIA's and AMD's."""


def worker_environment(threads: int, gpu: str | None, temporary: Path) -> dict[str, str]:
    """Return the environment that a worker is started with.

    Args:
        threads: for its libraries.
        gpu: name or index of the only GPU that it may see; None: it sees none.
        temporary: for its temporary files.
    """
    return os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "TMPDIR": str(temporary.absolute()),  # a killed Blender cannot clear its own
        **dict.fromkeys(DEVICE_VARIABLES, "-1" if gpu is None else gpu),
    }


def rss_by_group() -> dict[int, float]:
    """Return the resident memory in MB of all processes below this one, by process group.

    Reads the process table once, however many workers there are.
    """
    groups: dict[int, float] = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, ProcessLookupError):  # it has just ended
            group = os.getpgid(process.pid)
            groups[group] = groups.get(group, 0.0) + process.memory_info().rss / 2**20
    return groups


def kernel_oom_kills() -> int | None:
    """Return how many processes Linux has killed for want of memory; None where it does not say."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    except OSError:
        pass
    return None


class WorkerProcess:
    """A worker in a process group of its own.

    Args:
        python: interpreter of Blender's environment.
        settings: what `worker.main` expects.
        log_path: where what Blender prints goes; its folder is the worker's TMPDIR.
        gpu: see `worker_environment`.
    """

    def __init__(
        self, python: Path, settings: dict[str, Any], log_path: Path, gpu: str | None = None
    ):
        self.python, self.log_path, self.gpu = python, log_path, gpu
        self.job: dict[str, Any] | None = None
        self.ready = False
        self.num_done = 0
        self.deadline = time.monotonic() + START_TIMEOUT_S
        self.rss_mb = 0.0
        self.peak_rss_mb = 0.0
        self._log_start = 0
        self._received = b""
        self._oom_kills = kernel_oom_kills()
        request_read, request_write = os.pipe()
        reply_read, reply_write = os.pipe()
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
                env=worker_environment(settings["threads"], gpu, log_path.parent),
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
        self.peak_rss_mb = 0.0
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

    def note_rss(self, rss_mb: float) -> None:
        """Take down what the worker and its child processes hold now."""
        self.rss_mb = rss_mb
        self.peak_rss_mb = max(self.peak_rss_mb, rss_mb)

    def log_tail(self) -> str:
        """Return the end of what Blender printed during the job."""
        with self.log_path.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, end - 4 * TAIL_CHARACTERS))
            return log.read().decode(errors="replace")[-TAIL_CHARACTERS:].strip()

    def kill(self) -> int:
        """End the whole process group at once and return the exit status."""
        self._requests.close()
        self.replies.close()
        with contextlib.suppress(ProcessLookupError):  # gone already: wait() reaps it
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()

    def how_it_died(self, status: int) -> tuple[str, str]:
        """Return the reason and the message for a worker that ended by itself."""
        if status != -signal.SIGKILL:
            how = f"signal {-status}" if status < 0 else f"exit status {status}"
            return "crash", f"Blender died ({how})"
        if self._oom_kills is None or self._oom_kills != kernel_oom_kills():
            return "oom", "the machine ran out of memory and killed it"
        return "crash", "Blender was killed from outside (signal 9)"

    def start_failure(self) -> UserError:
        """Return what to tell the user when workers do not come up."""
        lines = self.log_path.read_text(errors="replace").strip().splitlines() or ["no output"]
        hint = "run `make install` again"
        if ".so" in lines[-1]:
            hint = (
                "install the system libraries that Blender needs: apt-get install libx11-6 "
                "libxrender1 libxxf86vm1 libxfixes3 libxi6 libxkbcommon0 libsm6 libgl1 libegl1"
            )
        return UserError(f"the Blender worker ({self.python}) does not start: {lines[-1]}: {hint}")
