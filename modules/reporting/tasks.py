"""What `eval.py task=` can do. A new task is a function here and a row of `TASKS`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.contract import UserError
from modules.geometry.fit import check_steps
from modules.latents.autoencoder_files import load_autoencoder
from modules.latents.spec import fingerprint
from modules.metrics.composition import Palette
from modules.metrics.lpips import load_lpips
from modules.metrics.scoring import ScoringOptions
from modules.pipelines.device import inference_device
from modules.pipelines.export import model_digest
from modules.pipelines.reconstruction import check_mesh_size
from modules.reporting.evaluation import Case, Shard, Unfinished, evaluate
from modules.reporting.folder_cases import folder_cases, frame_notes
from modules.reporting.image_folder import ImageFolder
from modules.reporting.image_sets import (
    ImageCaseScorer,
    ImageSetOptions,
    PromptScorer,
    check_set_sizes,
    compare_sets,
    image_cases,
    name_prompts,
)
from modules.reporting.latent_cases import latent_cases
from modules.reporting.mesh_files import file_notes
from modules.reporting.rebuild_cases import (
    StoredSamples,
    file_or_folder_digest,
    folder_digest,
    rebuild_cases,
    spread,
)
from modules.reporting.report import Provenance, as_markdown, write_report
from modules.reporting.text_cases import TextBenchmark, TextOptions, confusions, told_instrument
from modules.reporting.wandb_table import log_report

Settings = Mapping[str, Any]
"""The keys of conf/eval.yaml, as given."""


@dataclass(frozen=True)
class DataAccess:
    """What tasks need of data_pipeline, which modules do not import.

    Args:
        open_samples: opens a folder of rendered samples.
        decode_sample: decodes the members of one.
        read_prompts: returns file and caption of every row of a list.
        held_back: returns which of some uids training holds back, at most so many.
        palette: sRGB of the colours that procedural captions name.
    """

    open_samples: Callable[[Path], StoredSamples]
    decode_sample: Callable[[dict[str, bytes]], dict[str, Any]]
    read_prompts: Callable[[Path], list[tuple[str, str | None]]]
    held_back: Callable[[Sequence[str], int], list[int]]
    palette: Palette


@dataclass(frozen=True)
class Task:
    """One way to evaluate.

    Args:
        needs: keys that must be given.
        run: writes the report below `out` and returns what to tell of it.
    """

    needs: tuple[str, ...]
    run: Callable[[Settings, DataAccess, Path], str]


def run_task(settings: Settings, data: DataAccess) -> str:
    """Run `task` and return what to tell of it: the report as Markdown, and where it lies.

    Raises:
        UserError: there is no such task, or a key is missing.
    """
    name = settings["task"]
    if name not in TASKS:
        raise UserError(f"task={name} is not known: choose one of {', '.join(TASKS)}")
    task = TASKS[name]
    if missing := [f"{key}=DIR" for key in task.needs if settings[key] is None]:
        raise UserError(f"task={name} needs {' and '.join(missing)}")
    return task.run(settings, data, Path(settings["out"]))


def folder_task(settings: Settings, data: DataAccess, out: Path) -> str:
    """Score a folder of meshes against another; or, by their images, against prompts or a set."""
    if settings["prompts"] is not None or settings["reference_images"] is not None:
        return images_task(settings, data, out)
    if settings["reference"] is None:
        raise UserError(
            "task=meshes needs reference=DIR to compare meshes pair by pair, or prompts=FILE or "
            "reference_images=DIR to compare images"
        )
    options = _scoring_options(settings)
    folders = Path(settings["meshes"]), Path(settings["reference"])
    cases = folder_cases(*folders)
    chosen = [cases[i] for i in spread(len(cases), settings["count"])]
    return _score_meshes(chosen, options, settings, out, notes=file_notes(*folders))


def rebuild_task(settings: Settings, data: DataAccess, out: Path) -> str:
    """Send rendered samples through the refiner-decoder, and score what comes out."""
    method = _mesh_size(settings)
    options = _scoring_options(settings)
    paths = {key: settings[key] and Path(settings[key]) for key in ("checkpoint", "reference")}
    shard_set = data.open_samples(Path(settings["shards"]))
    cases = rebuild_cases(
        shard_set,
        data.decode_sample,
        settings=method,
        count=settings["count"],
        out=out / "rebuilt",
        strength=settings["strength"],
        device=inference_device(settings["device"]),
        **paths,
    )
    inputs = {"shards": shard_set.sha256}
    if paths["checkpoint"] is not None:
        inputs["checkpoint"] = folder_digest(paths["checkpoint"] / "refiner_decoder")
    if settings["strength"] is not None:
        inputs["diffusion"] = model_digest(
            Path(settings["checkpoint"]), ("autoencoder", "denoiser")
        )
        method = method | {"strength": settings["strength"]}
    return _score_meshes(cases, options, settings, out, inputs=inputs, method=method)


def latents_task(settings: Settings, data: DataAccess, out: Path) -> str:
    """Send rendered samples through an autoencoder, and score what comes back."""
    method = _mesh_size(settings)
    options = _scoring_options(settings)
    shard_set = data.open_samples(Path(settings["shards"]))
    autoencoder = load_autoencoder(settings["autoencoder"])
    inputs = {"shards": shard_set.sha256, "autoencoder": fingerprint(autoencoder)}
    cases = latent_cases(
        shard_set,
        data.decode_sample,
        autoencoder,
        settings=method,
        options=options,
        reference=settings["reference"] and Path(settings["reference"]),
        count=settings["count"],
        device=inference_device(settings["device"]),
    )
    return _score_meshes(cases, options, settings, out, inputs=inputs, method=method)


def images_task(settings: Settings, data: DataAccess, out: Path) -> str:
    """Score images, or views of meshes, against prompts, against a reference set, or both."""
    if settings["reference"] is not None:
        raise UserError(
            "reference=DIR is for meshes pair by pair: name it reference_images=DIR to compare "
            "images, or leave out prompts and reference_images"
        )
    if settings["count"] is not None:
        raise UserError(
            "count= is for meshes pair by pair: leave it out, for figures of sets depend on how "
            "many images there are"
        )
    if settings["prompts"] is not None and settings["clip"] is None:
        raise UserError("prompts=FILE needs clip=, such as clip=openai/clip-vit-large-patch14-336")
    if all(settings[key] is None for key in ("clip", "dinov2", "inception")):
        raise UserError("reference_images=DIR needs a network: give clip=, dinov2= or inception=")
    keys = ("num_views", "resolution_px", "seed", "clip", "dinov2", "inception", "kid_subset_size")
    options = ImageSetOptions(**{key: settings[key] for key in keys})
    folder = ImageFolder(Path(settings["meshes"]), options, out / "views")
    reference = prompts = scorer = sets = None
    if settings["reference_images"] is not None:
        reference = ImageFolder(Path(settings["reference_images"]), options, out / "views")
        check_set_sizes(folder, reference, options)
    if settings["prompts"] is not None:
        prompts = name_prompts(data.read_prompts(Path(settings["prompts"])), folder)
    networks = options.networks(inference_device(settings["device"]))
    about = about_inputs(
        settings, "meshes", "prompts", "reference_images", "clip", "dinov2", "inception"
    )
    protocol = asdict(options)
    for key in networks:
        protocol[key] = file_or_folder_digest(settings[key])
    notes = folder.notes + (reference.notes if reference is not None else [])
    if prompts is not None:
        scorer = PromptScorer(prompts, networks["clip"])
        protocol["prompts"] = scorer.digest
        about["candidates"] = f"{len(scorer.texts)} distinct prompts"
        if scorer.cut:
            notes.append(f"{len(scorer.cut)} prompts are longer than CLIP reads, and were cut.")
    cases = image_cases(folder, prompts, options)
    score_case = ImageCaseScorer(folder, prompts, scorer)
    pairs = evaluate(cases, options, out, Shard.parse(settings["shard"]), score_case)
    if isinstance(pairs, Unfinished):
        return _more_to_come(pairs, settings, out)
    if reference is not None:
        protocol["reference_images"] = reference.digest()
        sets, more = compare_sets(folder, reference, networks, options)
        notes += more
    report = write_report(
        pairs, Provenance(about=about, protocol=protocol), out,
        template="images.html.j2", more={"sets": sets, "notes": notes},
    )  # fmt: skip
    return _told(report, settings, out)


def text_task(settings: Settings, data: DataAccess, out: Path) -> str:
    """Make meshes of the captions that training held back, and measure what they show."""
    keys = ("steps", "guidance", "grid", "texture_px", "seed", "num_val", "classifier_steps")
    options = TextOptions(**{key: settings[key] for key in keys})
    shard_set = data.open_samples(Path(settings["shards"]))
    benchmark = TextBenchmark(
        shard_set,
        data.decode_sample,
        data.held_back(shard_set.uids, options.num_val),
        data.palette,
        Path(settings["checkpoint"]),
        options,
        out,
        inference_device(settings["device"]),
    )
    shard = Shard.parse(settings["shard"])
    pairs = evaluate(benchmark.cases(settings["count"]), options, out, shard, benchmark.score)
    if isinstance(pairs, Unfinished):
        return _more_to_come(pairs, settings, out)
    provenance = Provenance(
        about=about_inputs(settings, "shards", "checkpoint", "count"),
        inputs=benchmark.inputs,
        method=options.method(),
        protocol=options.protocol() | {"shards": benchmark.inputs["shards"]},
    )
    composition = {"instrument": benchmark.instrument(), "confusion": confusions(pairs)}
    notes = [*benchmark.notes, told_instrument(composition["instrument"])]
    report = write_report(
        pairs, provenance, out, template="composition.html.j2",
        more={"composition": composition, "notes": notes},
    )  # fmt: skip
    return _told(report, settings, out)


TASKS = {
    "meshes": Task(("meshes",), folder_task),
    "rebuild": Task(("shards",), rebuild_task),
    "latents": Task(("shards", "autoencoder"), latents_task),
    "text_to_3d": Task(("shards", "checkpoint"), text_task),
}


def _scoring_options(settings: Settings) -> ScoringOptions:
    keys = ("num_samples", "num_views", "resolution_px", "seed", "lpips_weights")
    options = ScoringOptions(**{key: settings[key] for key in keys})
    if options.lpips_weights is None:
        print("LPIPS is left out: lpips_weights=FILE adds it (docs/metrics.md says which)")
    else:
        load_lpips(options.lpips_weights)  # kept for all pairs; wrong weights are told before them
    return options


def _mesh_size(settings: Settings) -> dict[str, Any]:
    """Return what is asked of the rebuilt meshes, once it is sure that they can be made."""
    size = {key: settings[key] for key in ("grid", "texture_px")}
    check_mesh_size(**size)
    check_steps(settings["refine_steps"])
    return size | {"refine_steps": settings["refine_steps"]}


def _score_meshes(
    cases: Sequence[Case],
    options: ScoringOptions,
    settings: Settings,
    out: Path,
    *,
    notes: Sequence[str] = (),
    inputs: Mapping[str, str] | None = None,
    method: Mapping[str, Any] | None = None,
) -> str:
    pairs = evaluate(cases, options, out, Shard.parse(settings["shard"]))
    if isinstance(pairs, Unfinished):
        return _more_to_come(pairs, settings, out)
    protocol = asdict(options)
    if inputs is not None and "shards" in inputs:
        protocol["shards"] = inputs["shards"]  # figures of their images depend on how they look
    if options.lpips_weights is not None:
        protocol["lpips_weights"] = file_or_folder_digest(options.lpips_weights)
    keys = ("meshes", "shards", "autoencoder", "checkpoint", "reference", "count", "lpips_weights")
    provenance = Provenance(
        about=about_inputs(settings, *keys),
        inputs=inputs or {},
        method=method or {},
        protocol=protocol,
    )
    notes = [*notes, *frame_notes(pairs)]
    return _told(write_report(pairs, provenance, out, more={"notes": notes}), settings, out)


def _more_to_come(left: Unfinished, settings: Settings, out: Path) -> str:
    said = f"{out}: shard {settings['shard']} is done, {left.num_missing} pairs are missing yet; "
    if left.num_stale:
        said += (
            f"{left.num_stale} of them were scored with other options, inputs or code: give all "
            "shards the same ones; "
        )
    return said + "the one that ends last writes the report"


def _told(report: Mapping[str, Any], settings: Settings, out: Path) -> str:
    """Log the report to W&B if that is wanted, and return what to print of it.

    Raises:
        UserError: every pair failed with nothing to show, so nothing was measured; the report is
            there all the same.
    """
    if (project := settings["wandb"]["project"]) is not None:
        log_report(report, out, project=project, offline=settings["wandb"]["offline"])
    page = out / "report.html"
    if not any(pair["failed"] is None or pair["picture"] for pair in report["pairs"]):
        first = report["pairs"][0]
        raise UserError(
            f"nothing was measured: all {report['num_pairs']} pairs failed, such as "
            f"{first['name']}: {first['failed']} (report: {page})"
        )
    return f"{as_markdown(report)}\nreport: {page}"


def about_inputs(settings: Settings, *keys: str) -> dict[str, str]:
    """Return the task and those of its inputs that were given, as text."""
    return {key: str(settings[key]) for key in ("task", *keys) if settings[key] is not None}
