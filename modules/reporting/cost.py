"""What a piece of work costs: seconds by the clock, and the most memory that it held."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@contextmanager
def measured(figures: dict[str, float], stage: str) -> Iterator[None]:
    """Add `seconds_STAGE`, and the peak of memory in MB while the block ran, to some figures.

    `memory_mb_STAGE` is the process's resident memory, which Linux alone tells (proc_pid_status(5):
    VmHWM, reset by proc_pid_clear_refs(5)); it holds the libraries and what is loaded already.
    `gpu_memory_mb_STAGE` is what PyTorch held on the GPU, if there is one.
    """
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    resets = _reset_peak()
    start = time.perf_counter()
    yield
    if on_gpu:
        torch.cuda.synchronize()
        figures[f"gpu_memory_mb_{stage}"] = torch.cuda.max_memory_allocated() / 2**20
    figures[f"seconds_{stage}"] = time.perf_counter() - start
    if resets:
        figures[f"memory_mb_{stage}"] = _peak_mb()


def _reset_peak() -> bool:
    """Let the peak of resident memory start anew; return whether that is possible here."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def _peak_mb() -> float:
    lines = STATUS.read_text().splitlines()
    [kilobytes] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(kilobytes) / 1024.0
