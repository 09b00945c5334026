"""`render`: bring every asset of a source into a staging folder, once."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.contract import CONVENTIONS_VERSION, RenderSpec, UserError
from data_pipeline.render.device import resolve_device
from data_pipeline.render.node import Node
from data_pipeline.render.options import RenderOptions
from data_pipeline.render.progress import Progress
from data_pipeline.render.work_queue import WorkQueue
from data_pipeline.render.worker_process import REPOSITORY
from data_pipeline.sources import Asset
from data_pipeline.staging import Staging

RENDERER_VERSION = "3"
"""Raised with every change of this package that changes a sample's bytes."""

BLENDER_PYTHON_VARIABLE = "RELIEF_BLENDER_PYTHON"


@dataclass(frozen=True)
class RenderSummary:
    """What a run did.

    Args:
        num_assets: assets of the source.
        num_rendered: finished in this run.
        num_skipped: finished before, or failed before and not to be tried again.
        failures: assets that failed in this run, by reason.
        seconds: wall clock.
    """

    num_assets: int
    num_rendered: int
    num_skipped: int
    failures: dict[str, int]
    seconds: float

    def __str__(self) -> str:
        failed = ", ".join(f"{count} {reason}" for reason, count in sorted(self.failures.items()))
        return (
            f"{self.num_rendered} of {self.num_assets} assets rendered in {self.seconds:.0f} s, "
            f"{self.num_skipped} were done or given up before, failed: {failed or 'none'}"
        )


def find_blender_python(given: str | None) -> Path:
    """Return the interpreter of Blender's environment.

    Args:
        given: path that the user chose; else $RELIEF_BLENDER_PYTHON, else `.venv-blender`.

    Raises:
        UserError: there is none.
    """
    chosen = given or os.environ.get(BLENDER_PYTHON_VARIABLE)
    path = Path(chosen) if chosen else REPOSITORY / ".venv-blender" / "bin" / "python"
    if not path.is_file():
        raise UserError(
            f"no Blender environment at {path}: run `make install`, or name one by "
            f"{BLENDER_PYTHON_VARIABLE}"
        )
    return path.absolute()  # not resolved: a virtual environment's python is a link


def blender_version(python: Path) -> str:
    """Return the version of the bpy package, without the seconds that importing it takes."""
    probe = "import importlib.metadata as m; print(m.version('bpy'))"
    done = subprocess.run([str(python), "-c", probe], capture_output=True, text=True, check=False)
    if done.returncode < 0:
        raise UserError(f"{python} was killed (signal {-done.returncode}): run the command again")
    if done.returncode:
        raise UserError(f"{python} has no bpy package: run `make install` again")
    return done.stdout.strip()


def render_assets(
    assets: Sequence[Asset], staging_root: Path, spec: RenderSpec, **how: Any
) -> RenderSummary:
    """Render the assets that are neither finished nor given up, beside any other such process.

    Args:
        assets: with unique uids.
        staging_root: the staging folder; may hold the results of earlier runs of the same spec.
        spec: what to render.
        how: fields of `RenderOptions`.

    Raises:
        UserError: the settings or the staging folder do not fit.
        KeyboardInterrupt: at SIGINT or SIGTERM, after all workers have ended and all claims are
            given back; the same call goes on from there.
    """
    start = time.monotonic()
    options = RenderOptions(**how)
    python = find_blender_python(options.blender_python)
    record = _render_record(resolve_device(spec, python), blender_version(python))
    staging = Staging(staging_root)
    session = staging.open_for_render(
        record, lease_s=options.lease_s, run_id=options.run_name(), num_assets=len(assets)
    )
    node = Node(python, record, staging, session, options, len(assets))
    with _terminated_like_interrupted(), session, node:
        queue = WorkQueue(assets, staging, session, options)
        num_todo = queue.num_unsettled
        with Progress(len(assets), len(assets) - num_todo, options.log_every_s) as progress:
            while not node.work_off(queue, progress):
                queue = WorkQueue(assets, staging, session, options)
        queue.save_digest()
    return RenderSummary(
        num_assets=len(assets),
        num_rendered=progress.num_rendered,
        num_skipped=len(assets) - num_todo,
        failures=dict(progress.failures),
        seconds=time.monotonic() - start,
    )


def _render_record(spec: RenderSpec, version: str) -> dict[str, Any]:
    return {
        "config_hash": spec.config_hash(version, RENDERER_VERSION),
        "render_spec": asdict(spec),
        "blender": version,
        "renderer": RENDERER_VERSION,
        "conventions": CONVENTIONS_VERSION,
    }


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Have SIGTERM, as SLURM and systemd send it, do what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
