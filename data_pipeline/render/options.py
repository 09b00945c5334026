"""How a render run goes about its work: nothing here changes a sample."""

import glob
import os
import re
import secrets
from dataclasses import dataclass

from data_pipeline.contract import UserError
from data_pipeline.render.failures import REASONS
from data_pipeline.render.worker_process import DEVICE_VARIABLES
from data_pipeline.staging import LEASE_S

POSITIVE = (
    "workers", "timeout_s", "rss_limit_mb", "recycle_after", "max_attempts", "lease_s",
    "log_every_s",
)  # fmt: skip


def available_cpus() -> int:
    """Return the CPUs of this process: SLURM's share of the node, if it gives one."""
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    cpus = len(os.sched_getaffinity(0))
    return min(cpus, int(given)) if given.isdigit() and int(given) else cpus


def visible_gpus() -> tuple[str, ...]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    for variable in DEVICE_VARIABLES:
        if variable in os.environ:
            names = [name.strip() for name in os.environ[variable].split(",")]
            return tuple(name for name in names if name not in ("", "-1"))
    nodes = glob.glob("/dev/nvidia[0-9]*") or glob.glob("/dev/dri/renderD*")
    return tuple(str(i) for i in range(len(nodes)))


@dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """The keys of `render` that say how samples are made.

    Args:
        workers: Blender processes; by default one per GPU, or one per CPU. They share the CPUs.
        gpus: how many of this node's GPUs to use, one to a worker; `all`, as by default: all that
            CUDA_VISIBLE_DEVICES names, or that the machine has.
        timeout_s: wall-clock seconds that one asset may take.
        rss_limit_mb: resident memory that a worker with its child processes may take; None: any.
        recycle_after: assets after which a worker is replaced, as Blender's memory creeps.
        max_attempts: attempts at an asset whose failure may pass (`failures.TRANSIENT`).
        retry: a reason of failure, or `all`: assets given up for it are tried again.
        lease_s: seconds without a sign of life after which a node's work is taken over.
        run_id: name of the run on all its nodes: `retry` tries an asset again once a run. By
            default the SLURM job's or array's number, else a new one.
        log_every_s: seconds between lines of progress where there is no terminal.
        scratch: folder on a local disk for unfinished samples; in the staging folder by default.
        blender_python: interpreter of Blender's environment, if not the usual one.

    Raises:
        UserError: one of them makes no sense.
    """

    workers: int | None = None
    gpus: int | str | None = None
    timeout_s: float = 300.0
    rss_limit_mb: float | None = None
    recycle_after: int = 50
    max_attempts: int = 2
    retry: str | None = None
    lease_s: float = LEASE_S
    run_id: str | None = None
    log_every_s: float = 30.0
    scratch: str | None = None
    blender_python: str | None = None

    def __post_init__(self) -> None:
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:  # NaN neither
                raise UserError(f"{name}={value} must be positive")
        if self.run_id is not None and not re.fullmatch(r"[\w.-]{1,100}", self.run_id):
            raise UserError(f"run_id={self.run_id!r} may hold letters, digits, '_', '-' and '.'")
        if self.retry is not None and self.retry not in (*REASONS, "all"):
            raise UserError(
                f"retry={self.retry} is no reason of failure: choose all, {', '.join(REASONS)}"
            )
        if self.gpus not in (None, "all") and not (isinstance(self.gpus, int) and self.gpus > 0):
            raise UserError(f"gpus={self.gpus} must be a number of GPUs, or all")

    def gpu_names(self, device: str) -> tuple[str, ...]:
        """Return the GPUs to use, as CUDA_VISIBLE_DEVICES names them; none: render on CPUs.

        Args:
            device: of the render spec, `auto` resolved.

        Raises:
            UserError: there are not so many, or the device is `cpu`.
        """
        if device == "cpu":
            if self.gpus:
                raise UserError(f"gpus={self.gpus} needs a device: give device=auto as well")
            return ()
        names = visible_gpus()
        wanted = len(names) if self.gpus in (None, "all") else int(self.gpus)
        if wanted > len(names) or not names:
            raise UserError(f"gpus={self.gpus}: this machine shows {len(names)} GPUs")
        return names[:wanted]

    def num_workers(self, num_jobs: int, device: str) -> int:
        """Return how many workers to run for so many jobs."""
        wanted = self.workers or len(self.gpu_names(device)) or available_cpus()
        return max(1, min(wanted, num_jobs))

    def run_name(self) -> str:
        """Return the name of the run."""
        slurm = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID")
        return self.run_id or (f"slurm-{slurm}" if slurm else secrets.token_hex(4))
