"""Score meshes: python eval.py task=meshes meshes=DIR reference=DIR out=DIR.

With task=rebuild shards=DIR [checkpoint=DIR] rendered samples go through the refiner-decoder first.
Two reports: python eval.py compare first/report.json second/report.json.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from data_pipeline.command_line import named, run
from data_pipeline.contract import UserError

if TYPE_CHECKING:
    from modules.reporting.evaluation import Case

INPUTS = {"meshes": ("meshes", "reference"), "rebuild": ("shards",)}


def main(config: DictConfig) -> None:
    """Evaluate, write the report, print its table."""
    # The figures' libraries take seconds to import; a mistyped key is told before that.
    from modules.metrics.lpips import load_lpips
    from modules.metrics.scoring import ScoringOptions
    from modules.reporting.environment import describe_environment
    from modules.reporting.evaluation import as_markdown, evaluate, write_report
    from modules.reporting.folder_cases import folder_cases

    if config.task not in INPUTS:
        raise UserError(f"task={config.task} is not known: choose one of {', '.join(INPUTS)}")
    if missing := [f"{key}=DIR" for key in INPUTS[config.task] if config[key] is None]:
        raise UserError(f"task={config.task} needs {' and '.join(missing)}")
    keys = ("num_samples", "num_views", "resolution_px", "seed", "lpips_weights")
    options, out = ScoringOptions(**{key: config[key] for key in keys}), Path(config.out)
    if options.lpips_weights is None:
        print("LPIPS is left out: lpips_weights=FILE adds it (docs/metrics.md says which)")
    else:
        load_lpips(options.lpips_weights)  # kept for all pairs; wrong weights are told before them
    about = {"task": config.task} | {
        key: str(config[key])
        for key in ("meshes", "shards", "checkpoint", "reference")
        if config[key] is not None
    }
    if config.task == "meshes":
        cases = folder_cases(Path(config.meshes), Path(config.reference))
    else:
        cases = _rebuild_cases(config)
    report = write_report(
        evaluate(cases, options, out), options, about, describe_environment(), out
    )
    print(f"{as_markdown(report)}\nreport: {out / 'report.html'}")


def compare(config: DictConfig) -> None:
    """Print by how much the second report's method is better, with confidence intervals."""
    from modules.reporting.comparison import compare_files

    paths = Path(config.first), Path(config.second)
    print(compare_files(*paths, resamples=config.resamples, seed=config.seed))


def _rebuild_cases(config: DictConfig) -> "list[Case]":
    from data_pipeline.loading.samples import decode_sample
    from data_pipeline.shards.manifest import ShardSet
    from modules.reporting.rebuild_cases import rebuild_cases

    paths = {key: config[key] and Path(config[key]) for key in ("checkpoint", "reference")}
    settings = {"grid": config.grid, "texture_px": config.texture_px}
    shard_set, out = ShardSet(Path(config.shards), "samples"), Path(config.out) / "rebuilt"
    return rebuild_cases(
        shard_set, decode_sample, settings=settings, count=config.count, out=out, **paths
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["compare"]:
        run("compare", compare, named(sys.argv[2:], "first", "second"))
    run("eval", main)
