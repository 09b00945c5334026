"""`render`: bring every asset of a source into a staging folder, once."""

import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipeline.contract import CONVENTIONS_VERSION, RenderSpec, UserError
from data_pipeline.render.device import resolve_device
from data_pipeline.render.failures import REASONS, AssetFailure
from data_pipeline.render.farm import REPOSITORY, Farm, Outcome
from data_pipeline.render.precheck import check_file
from data_pipeline.sources import Asset
from data_pipeline.staging import Staging

RENDERER_VERSION = "2"
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
    if done.returncode:
        raise UserError(f"{python} has no bpy package: run `make install` again")
    return done.stdout.strip()


def render_assets(
    assets: Sequence[Asset],
    staging_root: Path,
    spec: RenderSpec,
    *,
    workers: int | None = None,
    timeout_s: float = 300.0,
    retry: str | None = None,
    blender_python: str | None = None,
) -> RenderSummary:
    """Render the assets that are neither finished nor known to fail.

    Args:
        assets: with unique uids.
        staging_root: the staging folder; may hold the results of earlier runs of the same spec.
        spec: what to render.
        workers: Blender processes; one per CPU by default. They share the CPUs evenly.
        timeout_s: wall-clock seconds per asset.
        retry: a reason of failure, or `all`: assets that failed so are tried again.
        blender_python: interpreter of Blender's environment, if not the usual one.

    Raises:
        UserError: the settings or the staging folder do not fit.
        KeyboardInterrupt: after all workers have ended; the same call goes on from there.
    """
    start = time.monotonic()
    if retry is not None and retry not in (*REASONS, "all"):
        raise UserError(f"retry={retry} is no reason of failure: choose all, {', '.join(REASONS)}")
    if workers is not None and workers < 1:
        raise UserError(f"workers={workers} must be at least 1")
    if timeout_s <= 0:
        raise UserError(f"timeout_s={timeout_s} must be positive")
    python = find_blender_python(blender_python)
    spec = resolve_device(spec, python)
    version = blender_version(python)
    record = {
        "config_hash": spec.config_hash(version, RENDERER_VERSION),
        "render_spec": asdict(spec),
        "blender": version,
        "renderer": RENDERER_VERSION,
        "conventions": CONVENTIONS_VERSION,
    }
    staging = Staging(staging_root)
    failures: Counter[str] = Counter()
    num_rendered = 0
    with staging.open_for_render(record):
        todo = _unfinished(assets, staging, retry)
        cpus = len(os.sched_getaffinity(0))
        num_workers = max(1, min(workers or cpus, len(todo)))
        settings = {
            "spec": record["render_spec"],
            "config_hash": record["config_hash"],
            "threads": max(1, cpus // num_workers),
        }
        with (
            tqdm(total=len(todo), desc="render", unit="asset", disable=not todo) as bar,
            Farm(
                python,
                settings,
                num_workers=num_workers,
                timeout_s=timeout_s,
                logs=staging.scratch,
            ) as farm,
        ):
            for outcome in _outcomes(todo, staging, farm):
                _keep(outcome, staging)
                if outcome.reason is None:
                    num_rendered += 1
                else:
                    failures[outcome.reason] += 1
                    bar.write(f"{outcome.uid}: {outcome.reason}: {outcome.message}")
                    bar.set_postfix(dict(failures), refresh=False)
                bar.update()
    return RenderSummary(
        num_assets=len(assets),
        num_rendered=num_rendered,
        num_skipped=len(assets) - len(todo),
        failures=dict(failures),
        seconds=time.monotonic() - start,
    )


def _unfinished(assets: Sequence[Asset], staging: Staging, retry: str | None) -> list[Asset]:
    failed = staging.failures()
    todo = []
    for asset in assets:
        given_up = asset.uid in failed and retry not in ("all", failed[asset.uid]["reason"])
        if not given_up and not staging.sample_dir(asset.uid).is_dir():
            todo.append(asset)
    return todo


def _outcomes(todo: Sequence[Asset], staging: Staging, farm: Farm) -> Iterator[Outcome]:
    """Yield the outcome of every asset; those that need no Blender to fail come as they are met."""
    refused: list[Outcome] = []

    def jobs() -> Iterator[dict[str, Any]]:
        for asset in todo:
            try:
                check_file(asset.path)
            except AssetFailure as failure:
                refused.append(Outcome(asset.uid, failure.reason, failure.message))
            else:
                yield _job(asset, staging)

    for outcome in farm.run(jobs()):
        yield outcome
        while refused:
            yield refused.pop(0)
    yield from refused


def _job(asset: Asset, staging: Staging) -> dict[str, Any]:
    return {
        "uid": asset.uid,
        "path": str(asset.path.absolute()),
        "folder": str((staging.scratch / asset.uid).absolute()),
        "captions": list(asset.captions),
        "licence": asset.licence,
        "author": asset.author,
        "source": asset.source,
        "attributes": dict(asset.attributes),
    }


def _keep(outcome: Outcome, staging: Staging) -> None:
    """Publish a finished sample, remove what is left of a failed one, and note either."""
    record: dict[str, Any] = {"uid": outcome.uid, "status": "done", "time": time.time()}
    record |= outcome.figures
    folder = staging.scratch / outcome.uid
    if outcome.reason is None:
        staging.publish(folder, outcome.uid)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        record |= {"status": "failed", "reason": outcome.reason, "message": outcome.message}
        record |= {"log_tail": outcome.log_tail} if outcome.log_tail else {}
    staging.append(record)
