"""Score cases one by one, keep what is done, and write the report as JSON, Markdown and HTML.

report.json:
    schema       1
    about        task and where its input came from, as text
    environment  see `describe_environment`; options: how figures were taken, seed included
    num_pairs, num_failed
    summary      figure -> {median, mean, p10, p90} over all pairs; a failed one counts as the worst
    floor        the same of the truth against another sampling of itself: the best there is
    sets, notes  of images only: num_images, num_reference_images and figures (key -> value) of two
                 sets, or null; sentences on what the figures do not tell
    composition  of task=text_to_3d only: instrument (accuracies of the classifier), confusion
                 (attribute -> asked -> measured -> count)
    pairs        worst first: name, failed (reason or null), truth (`mesh`, `samples` or `prompt`),
                 prompt (of images), metrics, floor, picture (path below the report's folder, or
                 null), mesh (the file that was scored, or null)
Keys of figures: docs/metrics.md.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from tqdm import tqdm

from data_pipeline.contract import UserError
from modules.geometry.mesh import Mesh
from modules.metrics.geometry import Surface, floor_figures
from modules.metrics.scoring import ScoringOptions, score, summarise
from modules.reporting.figure_notes import FIGURE_NOTES, table_rows
from modules.reporting.page import write_bytes, write_page, write_text
from modules.reporting.pictures import (
    data_uri,
    resized,
    shaded_views,
    side_by_side,
    to_png,
    turntable_cameras,
)

SCHEMA = 1
PICTURE_PX, PICTURE_VIEWS = 150, 4


@dataclass(frozen=True)
class Truth:
    """What a prediction is judged by, in the frame where it fills the unit cube.

    Args:
        surface: the surface to measure to.
        mesh: the mesh; None when only samples of the surface are known.
        views: what to show of it when there is no mesh: RGBA views.
    """

    surface: Surface
    mesh: Mesh | None
    views: UInt8[ndarray, "v h w 4"] | None = None


@dataclass(frozen=True)
class Loaded:
    """One case, ready to be scored.

    Args:
        predicted: the mesh, in the truth's frame.
        truth: what it is judged by.
        path: its file, if it has one.
        figures: figures that are known already.
        picture: what to show of the pair; None for views of the two meshes.
    """

    predicted: Mesh
    truth: Truth
    path: Path | None
    figures: Mapping[str, float] = field(default_factory=dict)
    picture: UInt8[ndarray, "h w c"] | None = None


@dataclass(frozen=True)
class Case:
    """One pair to be scored.

    Args:
        name: of the pair, unique.
        identity: text that changes when anything changes that its figures depend on.
        load: makes it ready, for meshes as `Loaded`; raises UserError, whose message is the reason
            of the failure.
        products: files that `load` writes: without them it runs again, unless it failed.
    """

    name: str
    identity: str
    load: Callable[[], Any]
    products: Sequence[Path] = ()


@dataclass(frozen=True)
class Shard:
    """A part of the cases, for one of several processes that share a folder.

    Args:
        index: from 0; the cases are dealt out in turn.
        count: of processes.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str | None) -> "Shard":
        """Return what `shard=0/4` means; all of the cases for None."""
        if text is None:
            return cls()
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", str(text))
        if not found or int(found[1]) >= int(found[2]):
            raise UserError(f"shard={text} is no share: the shards of four are 0/4, 1/4, 2/4, 3/4")
        return cls(int(found[1]), int(found[2]))


ScoreCase = Callable[[Case, Any, Path, str], dict[str, Any]]
"""Makes a pair of a case, the options, the report's folder, and the picture's path below it."""


def evaluate(
    cases: Sequence[Case],
    options: Any,
    out: Path,
    shard: Shard = Shard(),
    score_case: "ScoreCase | None" = None,
) -> list[dict[str, Any]] | None:
    """Score the shard's cases; return the pairs of all of them, worst first, once all are scored.

    Every finished pair is kept below `out`, so an interrupted command goes on where it stopped, and
    is scored anew when it failed, or its inputs, the options or this code have changed. A pair's
    figures do not depend on the others, so they are the same from one process and from many.

    Args:
        cases: the pairs.
        options: how figures are taken: a dataclass.
        out: the report's folder.
        shard: the part of the cases that this process scores.
        score_case: makes a pair of a case; by default one of a mesh against its truth, for which
            options are `ScoringOptions`.

    Returns:
        None while other shards have cases left.
    """
    score_case = score_case or score_mesh_case
    (out / "pairs").mkdir(parents=True, exist_ok=True)
    (out / "pictures").mkdir(exist_ok=True)
    common = json.dumps([SCHEMA, asdict(options), code_digest()])

    def kept(case: Case) -> dict[str, Any] | None:
        pair = _read_kept(_kept_path(out, case), _key(common, case))
        whole = pair is not None and (
            pair["failed"] is not None or all(path.is_file() for path in case.products)
        )
        return pair if whole else None

    mine = cases[shard.index :: shard.count]
    for case in tqdm(mine, desc="evaluate", unit="mesh", delay=1):
        pair = kept(case)
        if pair is None or pair["failed"] is not None:  # what made it fail may have been mended
            path = _kept_path(out, case)
            pair = score_case(case, options, out, f"pictures/{path.stem}.png")
            write_text(path, json.dumps({"key": _key(common, case), "pair": pair}))
    pairs = [pair for pair in map(kept, cases) if pair is not None]
    return sorted(pairs, key=_quality) if len(pairs) == len(cases) else None


def write_report(
    pairs: Sequence[dict[str, Any]],
    options: Any,
    about: Mapping[str, str],
    environment: Mapping[str, str],
    out: Path,
    *,
    template: str = "evaluation.html.j2",
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write report.json, report.md and report.html into `out` and return the report.

    Args:
        pairs: of `evaluate`. A failed one counts as its figures say, or else as the worst.
        options: how figures were taken: a dataclass.
        about: the task and its inputs.
        environment: see `describe_environment`.
        out: the report's folder.
        template: of the page.
        more: further keys of the report.
    """
    failed = [pair for pair in pairs if pair["failed"] is not None]
    # Pairs with a prompt carry what they count as; images held against a set alone count nothing.
    without_figures = sum(not pair["metrics"] and "prompt" not in pair for pair in failed)
    report = {
        "schema": SCHEMA,
        "about": dict(about),
        "environment": dict(environment),
        "options": asdict(options),
        "num_pairs": len(pairs),
        "num_failed": len(failed),
        "summary": summarise([pair["metrics"] for pair in pairs], without_figures),
        "floor": summarise([p["floor"] for p in pairs]),
        "pairs": list(pairs),
        **(more or {}),
    }
    write_text(out / "report.json", json.dumps(_without_nan(report), indent=1) + "\n")
    write_text(out / "report.md", as_markdown(report))
    rows = table_rows(report["summary"], report["floor"])
    write_page(
        template,
        out / "report.html",
        report=report,
        rows=rows,
        notes={note.key: note for note in FIGURE_NOTES},
        pictures=embedded_pictures(pairs, out),
    )
    return report


def embedded_pictures(pairs: Sequence[Mapping[str, Any]], out: Path) -> dict[str, str]:
    """Return the picture of each pair that has one, by name, as a data address."""
    return {
        pair["name"]: data_uri((out / pair["picture"]).read_bytes())
        for pair in pairs
        if pair["picture"] is not None
    }


def as_markdown(report: Mapping[str, Any]) -> str:
    """Return the report's table and failures as Markdown."""
    lines = [f"{report['num_pairs']} pairs, {report['num_failed']} failed. {_about_line(report)}"]
    rows = table_rows(report["summary"], report["floor"])
    if rows:
        head = "| figure | median | mean | p10 | p90 | floor |"
        lines += ["", head, "|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        cells = [row[key] for key in ("median", "mean", "p10", "p90", "floor")]
        lines.append(f"| {row['note'].label} | {' | '.join(cells)} |")
    if sets := report.get("sets"):
        counts = f"{sets['num_images']} images against {sets['num_reference_images']}"
        lines += ["", f"| {counts} | |", "|---|---:|"]
        figures = sets["figures"]
        lines += [
            f"| {note.label} | {figures[note.key]:.{note.digits}f} |"
            for note in FIGURE_NOTES
            if note.key in figures
        ]
    lines += ["", *(f"Note: {note}" for note in report["notes"])] if report.get("notes") else []
    failed = [pair for pair in report["pairs"] if pair["failed"] is not None]
    if failed:
        counted = report["summary"] or not report.get("sets")
        said = "Failed, and counted at their worst:" if counted else "Unreadable, and left out:"
        lines += ["", said, ""]
        lines += [f"- {pair['name']}: {pair['failed']}" for pair in failed]
    return "\n".join(lines) + "\n"


def _about_line(report: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in report["about"].items()) + "."


def score_mesh_case(case: Case, options: ScoringOptions, out: Path, picture: str) -> dict[str, Any]:
    """Return the pair of a mesh and its truth, and draw its picture."""
    pair: dict[str, Any] = {
        "name": case.name,
        "failed": None,
        "truth": None,
        "metrics": {},
        "floor": {},
        "picture": None,
        "mesh": None,
    }
    try:
        loaded = case.load()
        metrics = score(loaded.predicted, loaded.truth.surface, loaded.truth.mesh, options)
    except UserError as error:
        return pair | {"failed": str(error)}
    floor = floor_figures(loaded.truth.surface, num_samples=options.num_samples, seed=options.seed)
    drawn = loaded.picture
    if drawn is None:
        drawn = pair_picture(loaded.predicted, loaded.truth)
    write_bytes(out / picture, to_png(drawn))
    return pair | {
        "truth": "samples" if loaded.truth.mesh is None else "mesh",
        "metrics": metrics | dict(loaded.figures),
        "floor": floor,
        "picture": picture,
        "mesh": loaded.path and str(loaded.path),
    }


def pair_picture(predicted: Mesh, truth: Truth) -> UInt8[ndarray, "h w 4"]:
    """Return two rows of views, the truth above the prediction."""
    cameras = turntable_cameras(truth.mesh or predicted, PICTURE_VIEWS)
    below = shaded_views(predicted, cameras, PICTURE_PX)
    if truth.mesh is not None:
        above = shaded_views(truth.mesh, cameras, PICTURE_PX)
    else:
        assert truth.views is not None
        above = resized(truth.views[:PICTURE_VIEWS], PICTURE_PX)
    return np.concatenate([side_by_side(list(row)) for row in (above, below)], axis=0)


def _quality(pair: Mapping[str, Any]) -> tuple[bool, float, str]:
    """Sort key: failures first, then by F-score."""
    metrics = pair["metrics"]
    known = (key for key in ("f_score_0.02", "clip_score", "attributes_right") if key in metrics)
    return pair["failed"] is None, metrics.get(next(known, ""), 0.0), pair["name"]


def _kept_path(out: Path, case: Case) -> Path:
    return out / "pairs" / f"{hashlib.sha256(case.name.encode()).hexdigest()[:16]}.json"


def _key(common: str, case: Case) -> str:
    return hashlib.sha256(f"{common}\n{case.identity}".encode()).hexdigest()


def _read_kept(path: Path, key: str) -> dict[str, Any] | None:
    """Return the pair of an earlier run of the same command, or None."""
    if not path.is_file():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    return kept["pair"] if kept["key"] == key else None


def code_digest() -> str:
    """Return a hash of this package's sources: other code may give other figures."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _without_nan(value: Any) -> Any:
    """Return a JSON value in which NaN, which JSON lacks, is null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
