"""The whole road at a small scale: python scripts/demo.py [run_dir=DIR] [assets=DIR] [short=true].

Runs the commands that a user would type, one after the other, and writes `run_dir/report.html`.
Interrupted, the same command goes on: every stage knows what it has done already.
"""

import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from demo_prompts import Prompt, choose_prompts, pictured_sample
from demo_record import StageRecord, claim_run

from data_pipeline.command_line import INTERRUPTED, INTERRUPTION
from data_pipeline.contract import UserError
from data_pipeline.sources.folder import FolderSource
from modules.reporting.demo_page import DemoRun, write_demo_page

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Scale:
    """How much the demo does; of a larger folder it takes as many assets as it would make."""

    assets: int
    resolution_px: int
    autoencoder_steps: int
    diffusion_steps: int
    refiner_steps: int
    prompts: int
    sampling_steps: int
    rebuilds: int


FULL = Scale(200, 64, 150, 800, 200, 4, 20, 6)
SHORT = Scale(12, 64, 30, 40, 20, 2, 8, 3)
"""For continuous integration: every stage, too little training for a good result."""


@dataclass(frozen=True)
class Stage:
    """One command of the road."""

    name: str
    title: str
    command: tuple[str, ...]
    product: Path | None = None  # skipped while this file is newer than the trained pipeline


def stages_before_prompts(run: Path, assets: Path | None, scale: Scale) -> list[Stage]:
    """Return the stages up to the complete pipeline."""
    staging, shards, pipeline = run / "staging", run / "shards", run / "pipeline"
    latents, encoder = run / "latents", pipeline / "autoencoder"
    if assets is None:
        count = f"source.count={scale.assets}"
        source = ("source=procedural", f"source.root={run / 'assets'}", count)
    else:
        found = len(FolderSource(assets).assets())
        limit = (f"source.count={scale.assets}",) if found > scale.assets else ()
        source = ("source=folder", f"source.root={assets}", *limit)

    def train(name: str, data: str, steps: int) -> tuple[str, ...]:
        folders = (f"paths.run_dir={run / name}", f"paths.pipeline_dir={pipeline}")
        limits = ("logger=csv", f"trainer.max_steps={steps}")
        return ("train.py", f"experiment=tiny/{name}", data, *folders, *limits)

    on_shards = f"shards={shards}"
    return [
        Stage("render", "Render every asset in Blender", (
            "-m", "data_pipeline", "render", *source, f"out={staging}",
            f"resolution_px={scale.resolution_px}", "samples=8", "surface_points=4096",
            "sdf_points=4096")),
        Stage("pack", "Pack the samples into shards",
              ("-m", "data_pipeline", "pack", f"out={staging}", on_shards)),
        Stage("autoencoder", "Train the image autoencoder",
              train("autoencoder", on_shards, scale.autoencoder_steps)),
        Stage("encode", "Encode the samples to 2.5D latents",
              ("encode.py", on_shards, f"autoencoder={encoder}", f"out={latents}")),
        Stage("latent_diffusion", "Train the latent diffusion",
              train("latent_diffusion", f"latents={latents}", scale.diffusion_steps)),
        Stage("refiner_decoder", "Train the refiner-decoder",
              train("refiner_decoder", on_shards, scale.refiner_steps)),
    ]  # fmt: skip


def stages_after_prompts(
    run: Path, assets: Path | None, scale: Scale, prompts: list[Prompt]
) -> list[Stage]:
    """Return the stages that use the pipeline."""
    pipeline, generated = run / "pipeline", run / "generated"
    stages = [
        Stage(
            f"generate_{prompt.name}",
            f"Generate “{prompt.text}”",
            (
                "generate.py", f"prompt={prompt.text}", f"checkpoint={pipeline}",
                f"out={generated / prompt.name}.glb", f"views={generated / prompt.name}.png",
                f"steps={scale.sampling_steps}", "seed=0",
            ),
            generated / f"{prompt.name}.glb",
        )
        for prompt in prompts
    ]  # fmt: skip
    command = (
        "eval.py", "task=rebuild", f"shards={run / 'shards'}", f"checkpoint={pipeline}",
        f"reference={run / 'assets' if assets is None else assets}", f"out={run / 'evaluation'}",
        f"count={scale.rebuilds}",
    )  # fmt: skip
    return [*stages, Stage("evaluate", "Rebuild samples and measure them", command)]


def run_stage(stage: Stage, number: str, record: StageRecord, pipeline: Path) -> None:
    """Echo and run one stage; time it; end the program with its exit code when it fails."""
    shown = f"python {shlex.join(stage.command)}"
    print(f"\n[{number}] {stage.title}\n$ {shown}", flush=True)
    if stage.product is not None and _is_newer(stage.product, pipeline / "relief.json"):
        print(f"{stage.product}: made already")
        return
    start = time.monotonic()
    # On shared cores, threads that spin while they wait for a descheduled one took five times the
    # CPU of one thread; passive ones 1.2 times (docs/experiments.md).
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ
    process = subprocess.Popen([sys.executable, *stage.command], cwd=ROOT, env=environment)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()  # the stage got the same Ctrl-C, and ends in its own way
        code = INTERRUPTED
    record.add(stage.name, stage.title, shown, time.monotonic() - start, done=code == 0)
    if code:
        print(
            f"\nerror: stage {stage.name} ended with exit code {code}: its last lines say why; "
            "the same command goes on from here",
            file=sys.stderr,
        )
        sys.exit(code if code > 0 else 128 - code)


def _is_newer(product: Path, than: Path) -> bool:
    return product.is_file() and product.stat().st_mtime > than.stat().st_mtime


def read_arguments(arguments: list[str]) -> tuple[Path, Path | None, bool]:
    """Return the run's folder, the user's assets (None: made by code), and whether it is short."""
    values = {"run_dir": "runs/demo", "assets": "", "short": "false"}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in values:
            known = ", ".join(values)
            raise UserError(f"{argument!r} is not understood: give {known} as key=value")
        values[key] = value
    if values["short"] not in ("true", "false"):
        raise UserError(f"short={values['short']} must be true or false")
    assets = Path(values["assets"]).expanduser() if values["assets"] else None
    if assets is not None and not assets.is_dir():
        raise UserError(f"assets={assets} is no folder: give one that holds GLB, OBJ, FBX … files")
    run_dir = _from_root(Path(values["run_dir"]))
    return run_dir, assets and _from_root(assets), values["short"] == "true"


def _from_root(path: Path) -> Path:
    """Return a path that means the same in the checkout's root, where the commands run."""
    path = path.absolute()
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def main() -> None:
    """Run the demo."""
    run, assets, short = read_arguments(sys.argv[1:])
    scale = SHORT if short else FULL
    claim_run(ROOT / run, {"assets": str(assets or "procedural"), "short": short})
    record = StageRecord(ROOT / run / "stages.json")
    first = stages_before_prompts(run, assets, scale)
    total = len(first) + scale.prompts + 1
    for i, stage in enumerate(first, start=1):
        run_stage(stage, f"{i}/{total}", record, ROOT / run / "pipeline")
        if stage.name == "render" and not any((ROOT / run / "staging/samples").glob("*/*.tar")):
            raise UserError(
                "none of the assets could be rendered, for the reasons above; a page of them: "
                f".venv/bin/python -m data_pipeline stats out={run}/staging"
            )
    prompts = choose_prompts(ROOT / run / "shards", scale.prompts, invent=assets is None)
    rest = stages_after_prompts(run, assets, scale, prompts)
    for i, stage in enumerate(rest, start=len(first) + 1):
        run_stage(stage, f"{i}/{len(first) + len(rest)}", record, ROOT / run / "pipeline")
    timed = {stage["name"]: stage for stage in record.stages}
    stages = [timed[stage.name] for stage in (*first, *rest)]
    page = write_demo_page(
        DemoRun(
            folder=ROOT / run,
            shown_folder=str(run),
            assets=None if assets is None else str(assets),
            short=short,
            prompts=[(prompt.name, prompt.text, prompt.in_training) for prompt in prompts],
            stages=stages,
            **pictured_sample(ROOT / run / "shards", prompts[0].text),
        )
    )
    example = prompts[-1].text
    print(
        f"\nDone in {sum(stage['seconds'] for stage in stages) / 60:.1f} minutes.\n"
        f"  Open      {page if not page.is_relative_to(ROOT) else page.relative_to(ROOT)}\n"
        f"  Meshes    {run}/generated/*.glb\n"
        f"  Try next  .venv/bin/python generate.py prompt={shlex.quote(example)} "
        f"checkpoint={run}/pipeline out={run}/generated/again.glb seed=1\n"
        "            make demo ASSETS=path/to/your/folder RUN=runs/mine"
    )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"error: {INTERRUPTION}", file=sys.stderr)
        sys.exit(INTERRUPTED)
