"""The page of a demo run: what went in, how it was trained, what came out, how good it is."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

from data_pipeline.contract import MODALITIES
from modules.geometry.mesh import load_mesh
from modules.metrics.mesh_quality import mesh_quality
from modules.reporting.charts import Curve, last_value, line_chart, read_csv_logs
from modules.reporting.environment import describe_environment
from modules.reporting.figure_notes import FIGURE_NOTES, table_rows
from modules.reporting.page import write_page
from modules.reporting.pictures import data_uri, in_unit_cube, side_by_side, to_png, turntable
from modules.reporting.report import embedded_pictures

TRAININGS = (
    ("autoencoder", "Image autoencoder"),
    ("latent_diffusion", "Latent diffusion"),
    ("refiner_decoder", "Refiner-decoder"),
)
MAX_CURVES = 4
COLOUR_FIGURES = ("psnr_masked", "input_view_psnr_masked")
"""The headline takes the first that was measured: unseen views need the original assets."""


@dataclass(frozen=True)
class DemoRun:
    """What the driver knows of a finished demo.

    Args:
        folder: the run's folder.
        shown_folder: the same as commands name it.
        assets: the user's folder; None when the assets were made by code.
        short: whether it was the shortened run for continuous integration.
        prompts: name of the files, text, and whether a training sample has this very caption.
        stages: title, command (shown as it is typed) and seconds of every stage, in order.
        sample: one rendered sample: uid, caption, names of its views, and rgb (v h w 4), normal and
            coord (v h w 3) as stored.
        num_samples: samples in the shards.
    """

    folder: Path
    shown_folder: str
    assets: str | None
    short: bool
    prompts: Sequence[tuple[str, str, bool]]
    stages: Sequence[Mapping[str, Any]]
    sample: Mapping[str, Any]
    num_samples: int


def write_demo_page(run: DemoRun) -> Path:
    """Write `report.html` into the run's folder and return its path."""
    evaluation = json.loads((run.folder / "evaluation/report.json").read_text(encoding="utf-8"))
    page = run.folder / "report.html"
    pairs = [pair for pair in evaluation["pairs"] if pair["picture"]]
    write_page(
        "demo.html.j2",
        page,
        run=run,
        environment=describe_environment(),
        total_seconds=sum(stage["seconds"] for stage in run.stages),
        longest=max(stage["seconds"] for stage in run.stages),
        sample_rows=_sample_rows(run.sample),
        trainings=[_training(run.folder / name, title) for name, title in TRAININGS],
        results=[_result(run.folder, *prompt) for prompt in run.prompts],
        evaluation=evaluation,
        rows=table_rows(evaluation["summary"], evaluation["floor"]),
        colour_key=next(key for key in COLOUR_FIGURES if key in evaluation["summary"]),
        notes={note.key: note for note in FIGURE_NOTES},
        pairs=pairs,
        pictures=embedded_pictures(pairs, run.folder / "evaluation"),
        rebuilt=sorted(
            path.relative_to(run.folder).as_posix()
            for path in (run.folder / "evaluation/rebuilt").glob("*.glb")
        ),
    )
    return page


def _sample_rows(sample: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (modality, strip of its views as data address)."""
    rows = []
    for modality in MODALITIES:
        views = sample[modality]
        if views.dtype == np.uint16:
            views = (views >> 8).astype(np.uint8)
        rows.append((modality, data_uri(to_png(np.concatenate(list(views), axis=1)))))
    return rows


def _training(run_dir: Path, title: str) -> dict[str, Any]:
    """Return the loss curves of one stage, the total first; and its first and last validation."""
    prefix = "train/loss/"
    every = read_csv_logs(run_dir)
    logged = {
        key.removeprefix(prefix): curve for key, curve in every.items() if key.startswith(prefix)
    }
    validated = [
        (key.removeprefix("val/"), f"{curve.value[0]:.3g}", f"{curve.value[-1]:.3g}")
        for key, curve in sorted(every.items())
        if key.startswith("val/") and len(curve.value) > 1
    ]
    first = ("total", *MODALITIES)
    # Plain names are the terms of the loss, longer ones what it is compared with.
    rest = sorted((key for key in logged if key not in first), key=lambda key: (len(key), key))
    order = [key for key in (*first, *rest) if key in logged][:MAX_CURVES]
    curves: dict[str, Curve] = {key: logged[key] for key in order}
    steps = max((curve.step[-1] for curve in curves.values()), default=0.0)
    return {
        "title": title,
        "chart": line_chart(curves, f"{title}: training loss over steps"),
        "legend": [(key, f"{last_value(curve):.3g}") for key, curve in curves.items()],
        "steps": int(steps) + 1,
        "validated": validated,
    }


def _result(folder: Path, name: str, text: str, in_training: bool) -> dict[str, Any]:
    """Return what the page shows of one generated mesh."""
    path = folder / "generated" / f"{name}.glb"
    mesh = load_mesh(path)
    quality = mesh_quality(mesh.vertices, mesh.faces)
    views = path.with_suffix(".png").read_bytes()
    with Image.open(io.BytesIO(views)) as image:
        blocks = [_in_two_rows(rows) for rows in np.split(np.asarray(image.convert("RGB")), 3)]
    return {
        "text": text,
        "in_training": in_training,
        "path": path.relative_to(folder).as_posix(),
        "megabytes": path.stat().st_size / 1e6,
        "faces": int(quality["faces"]),
        "watertight": bool(quality["watertight"]),
        "turntable": data_uri(to_png(turntable(in_unit_cube(mesh), 8, 170))),
        "views": [
            (modality, data_uri(to_png(block)))
            for modality, block in zip(MODALITIES, blocks, strict=True)
        ],
    }


def _in_two_rows(strip: UInt8[ndarray, "h w 3"]) -> UInt8[ndarray, "h2 w2 3"]:
    """Return square views that lie side by side as two rows, in reading order."""
    side = strip.shape[0]
    views = [strip[:, left : left + side] for left in range(0, strip.shape[1], side)]
    if len(views) % 2:
        return strip
    half = len(views) // 2
    return np.concatenate([side_by_side(row) for row in (views[:half], views[half:])], axis=0)
