"""python -m data_pipeline COMMAND key=value ...: assets to verified shards."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from data_pipeline.command_line import USAGE_ERROR, run
from data_pipeline.contract import RenderSpec, UserError
from data_pipeline.duplicates.command import of_files, of_samples, report
from data_pipeline.inspection import inspect_shards
from data_pipeline.render.command import render_assets
from data_pipeline.render.options import RenderOptions
from data_pipeline.shards.pack import pack_samples
from data_pipeline.shards.repair import repair_shards
from data_pipeline.shards.rerender import rerender
from data_pipeline.shards.verify import report_faults, verify_shards
from data_pipeline.staging import Staging
from data_pipeline.staging.verify import verify_samples
from data_pipeline.stats.command import print_stats


def render(config: DictConfig) -> None:
    """Render the source's assets into a staging folder."""
    staging = Path(config.out)
    assets = instantiate(config.source).assets()
    spec = RenderSpec.from_mapping(config)
    how = {key: config[key] for key in RenderOptions.__dataclass_fields__}
    summary = render_assets(assets, staging, spec, **how)
    print(f"{staging}: {summary}")


def pack(config: DictConfig) -> None:
    """Pack a staging folder into shards."""
    pack_samples(Path(config.out), Path(config.shards), config.samples_per_shard)


def verify(config: DictConfig) -> None:
    """Check shards against their manifest, or (out=) the finished samples of a staging folder."""
    if OmegaConf.is_missing(config, "shards"):
        verify_samples(Staging(Path(config.out)))
        return
    if config.kind not in ("samples", "latents"):
        raise UserError(f"kind={config.kind} is not known: choose samples or latents")
    if config.mode not in ("fast", "full"):
        raise UserError(f"mode={config.mode} is not known: choose fast or full")
    faults = verify_shards(Path(config.shards), config.kind, full=config.mode == "full")
    report_faults(faults, Path(config.shards), config.kind)
    checked = {"fast": "names and sizes; mode=full reads every byte", "full": "every byte"}
    print(f"{config.shards}: sound ({checked[config.mode]})")


def repair(config: DictConfig) -> None:
    """Mend damaged shards from the staging folder, and render again what is lost."""
    staging, shards = Path(config.out), Path(config.shards)
    how = {key: config[key] for key in RenderOptions.__dataclass_fields__}

    def render_lost(uids: Sequence[str], manifest: dict[str, Any]) -> None:
        rerender(uids, manifest, staging, lambda: instantiate(config.source).assets(), **how)

    repair_shards(staging, shards, render_lost)


def stats(config: DictConfig) -> None:
    """Print how many assets of a staging folder are done, and why the others failed."""
    html = None if config.html is None else Path(config.html)
    print_stats(Path(config.out), config.format, html)


def inspect(config: DictConfig) -> None:
    """Print what a set, a shard or a sample (uid=, png= for its views) holds."""
    inspect_shards(
        Path(config.shards), config.uid, None if config.png is None else Path(config.png)
    )


def duplicates(config: DictConfig) -> None:
    """Find copies and variants: among samples (out=), or identical files of a source."""
    if OmegaConf.is_missing(config, "out"):
        found = of_files(instantiate(config.source).assets())
    else:
        found = of_samples(Path(config.out))
    groups, drop = (None if path is None else Path(path) for path in (config.groups, config.drop))
    report(found, config.format, groups, drop)


COMMANDS = {
    "render": render,
    "pack": pack,
    "verify": verify,
    "repair": repair,
    "stats": stats,
    "inspect": inspect,
    "duplicates": duplicates,
}


def main() -> None:
    """Dispatch the first argument."""
    usage = (
        "usage: python -m data_pipeline {"
        + ",".join(COMMANDS)
        + "} key=value ... (--help lists the keys)"
    )
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command in ("-h", "--help"):
        print(usage)
        for name, function in COMMANDS.items():
            print(f"  {name:8} {function.__doc__}")
        return
    if command not in COMMANDS:
        print(f"error: unknown command {command!r}; {usage}", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    sys.argv[:] = [f"{sys.argv[0]} {command}", *sys.argv[2:]]
    run("data_pipeline", COMMANDS[command])


if __name__ == "__main__":
    main()
