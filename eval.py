"""Score meshes: python eval.py task=meshes meshes=DIR reference=DIR out=DIR.

With prompts=FILE clip=HUB_ID or reference_images=DIR instead of reference, by their images.
With task=rebuild shards=DIR [checkpoint=DIR] rendered samples go through the refiner-decoder first.
Two reports: python eval.py compare first/report.json second/report.json.
"""

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from data_pipeline.command_line import USAGE_ERROR, named, run


def main(config: DictConfig) -> None:
    """Evaluate, write the report, print its table."""
    # The figures' libraries take seconds to import; a mistyped key is told before that.
    from data_pipeline.loading.samples import decode_sample
    from data_pipeline.loading.split import held_back
    from data_pipeline.shards.manifest import ShardSet
    from data_pipeline.sources.patterns import COLOURS
    from data_pipeline.sources.table import captions_of, read_table
    from modules.reporting.tasks import DataAccess, run_task

    settings: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)

    def read_prompts(path: Path) -> list[tuple[str, str | None]]:
        rows = read_table(path)
        return [(row["file"], next(iter(captions_of(row, str(path))), None)) for row in rows]

    data = DataAccess(
        open_samples=lambda folder: ShardSet(folder, "samples"),
        decode_sample=decode_sample,
        read_prompts=read_prompts,
        held_back=held_back,
        palette=COLOURS,
    )
    print(run_task(settings, data))


def compare(config: DictConfig) -> None:
    """Print by how much the second report's method is better, with confidence intervals."""
    from modules.reporting.comparison import compare_files

    paths = Path(config.first), Path(config.second)
    print(compare_files(*paths, resamples=config.resamples, seed=config.seed))


if __name__ == "__main__":
    if sys.argv[1:2] == ["compare"]:
        arguments = named(sys.argv[2:], "first", "second")
        if more := [each for each in arguments if "=" not in each and not each.startswith("-")]:
            print(f"error: compare takes two reports, {more[0]} is a third", file=sys.stderr)
            sys.exit(USAGE_ERROR)
        run("compare", compare, arguments)
    run("eval", main)
