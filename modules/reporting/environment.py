"""What machine and which versions produced a report."""

import importlib.metadata
import os
import platform
from pathlib import Path

import psutil

from modules.callbacks.run_record import git_commit, git_is_dirty

PACKAGES = (
    "torch",
    "lightning",
    "diffusers",
    "numpy",
    "libigl",
    "embreex",
    "trimesh",
    "webdataset",
)


def describe_environment() -> dict[str, str]:
    """Return what a report says of where it was made: code, machine and versions, as text.

    `git_sha` ends in `-dirty` where the code is not that of the commit, as in `git describe`.
    """
    commit = git_commit()
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "git_sha": f"{commit}{'-dirty' * git_is_dirty()}" if commit else "not a git checkout",
        "machine": f"{_processor()}, {_usable_cpus()} CPUs, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GB memory, {_accelerators()}",
        "system": f"{platform.system()} {platform.release()} ({platform.machine()})",
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or "unknown processor"


def _usable_cpus() -> int:
    """Return the CPUs that this process may use, which a container may have limited."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _accelerators() -> str:
    import torch  # here, because it takes a second and most of this file does not need it

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names) or "no GPU"
