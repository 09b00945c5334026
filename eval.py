"""Score meshes: python eval.py task=meshes meshes=DIR reference=DIR out=DIR.

With task=rebuild shards=DIR [checkpoint=DIR] rendered samples go through the refiner-decoder first.
"""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from data_pipeline.command_line import run
from data_pipeline.contract import UserError
from modules.callbacks.run_record import git_commit
from modules.metrics.scoring import ScoringOptions
from modules.reporting.cases import Case, folder_cases, folder_digest, rebuild_cases
from modules.reporting.environment import describe_environment
from modules.reporting.evaluation import as_markdown, evaluate, write_report

TASK_KEYS = {"meshes": ("meshes", "reference"), "rebuild": ("shards",)}


def main(config: DictConfig) -> None:
    """Evaluate, write the report, print its table."""
    if config.task not in TASK_KEYS:
        raise UserError(f"task={config.task} is not known: choose one of {', '.join(TASK_KEYS)}")
    missing = [key for key in TASK_KEYS[config.task] if config[key] is None]
    if missing:
        raise UserError(f"task={config.task} needs {' and '.join(f'{key}=DIR' for key in missing)}")
    keys = ("num_samples", "num_views", "resolution_px", "seed")
    options = ScoringOptions(**{key: config[key] for key in keys})
    folders = {"meshes": config.meshes, "reference": config.reference, "shards": config.shards}
    about = {"task": config.task} | {key: str(value) for key, value in folders.items() if value}
    if config.task == "meshes":
        cases = folder_cases(Path(config.meshes), Path(config.reference))
    else:
        about["weights"] = str(config.checkpoint or "none: the classical estimate")
        cases = _rebuild_cases(config)
    out = Path(config.out)
    pairs = evaluate(cases, options, out)
    report = write_report(pairs, options, about, describe_environment(git_commit()), out)
    print(as_markdown(report))
    print(f"report: {out / 'report.html'}")


def _rebuild_cases(config: DictConfig) -> list[Case]:
    """Return a case per rendered sample; this alone needs both packages and torch."""
    from modules.pipelines.reconstruction import Reconstructor

    from data_pipeline.loading.samples import decode_sample
    from data_pipeline.shards.manifest import ShardSet

    shard_set = ShardSet(Path(config.shards), "samples")
    settings = {"grid": config.grid, "texture_px": config.texture_px}
    if config.checkpoint is None:
        reconstruct, weights = Reconstructor.classical(), "classical"
    else:
        reconstruct = Reconstructor.from_pretrained(Path(config.checkpoint))
        weights = folder_digest(Path(config.checkpoint) / "refiner_decoder")

    def read(uid: str) -> tuple[dict[str, Any], dict[str, Any]]:
        members = shard_set.read(shard_set.index_of(uid))
        return decode_sample(members), json.loads(members["meta.json"])

    return rebuild_cases(
        shard_set.uids[: config.count],
        read,
        lambda s, cameras: reconstruct(s["images"], cameras, s["hit"], **settings),
        identity=f"{shard_set.sha256} {weights} {settings}",
        reference=None if config.reference is None else Path(config.reference),
        out=Path(config.out) / "rebuilt",
    )


if __name__ == "__main__":
    run("eval", main)
