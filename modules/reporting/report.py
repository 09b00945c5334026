"""The report of a set of pairs as JSON, Markdown and HTML.

report.json:
    schema       2
    about        task, its inputs as they were given, count
    inputs       input -> digest: shards (SHA-256 of the manifest), checkpoint (of what was used of
                 the folder), autoencoder (fingerprint of the weights)
    method       how the meshes were made: grid, texture_px, steps, guidance, seed; empty for files
                 that others made
    protocol     how figures were taken, in numbers and words: reports whose protocols agree can be
                 compared. Networks are named by hub id, or by the digest of their files
    environment  see `describe_environment`
    num_pairs, num_failed
    summary      figure -> {median, mean, p10, p90} over all pairs; a failed one counts as the worst
                 (`failure_figure`)
    floor        the same of the truth against another sampling of itself: the best there is
    notes        sentences on what the figures do not tell
    sets         of images only: num_images, num_reference_images and figures (key -> value) of two
                 sets, or null
    composition  of task=text_to_3d only: instrument (accuracies of the classifier), confusion
                 (attribute -> asked -> measured -> count)
    pairs        worst first: name, failed (reason or null), truth (`mesh`, `samples` or `prompt`),
                 truth_digest (of its shape and colours or its words, or null where it could not be
                 read), prompt (of images), metrics, floor, picture (path below the report's folder,
                 or null), mesh (the file that was scored, or null)
Keys of figures: docs/metrics.md.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modules.metrics.scoring import summarise
from modules.reporting.environment import describe_environment
from modules.reporting.figure_notes import FIGURE_NOTES, table_rows
from modules.reporting.page import write_page, write_text
from modules.reporting.pictures import data_uri

SCHEMA = 2


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What makes a report's figures repeatable: keys of report.json, see there.

    Args:
        about, inputs, method, protocol: as the schema says.
    """

    about: Mapping[str, str]
    protocol: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    method: Mapping[str, Any] = field(default_factory=dict)


def write_report(
    pairs: Sequence[dict[str, Any]],
    provenance: Provenance,
    out: Path,
    *,
    template: str = "evaluation.html.j2",
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write report.json, report.md and report.html into `out` and return the report.

    Args:
        pairs: of `evaluate`. A failed one counts as its figures say, or else as the worst.
        provenance: what was scored, and how.
        out: the report's folder.
        template: of the page.
        more: further keys of the report.
    """
    failed = [pair for pair in pairs if pair["failed"] is not None]
    # Pairs with a prompt carry what they count as; images held against a set alone count nothing.
    partly = [p["metrics"] for p in failed if p["metrics"] and "prompt" not in p]
    whole = [p["metrics"] for p in pairs if p["failed"] is None or "prompt" in p]
    without_figures = sum(not pair["metrics"] and "prompt" not in pair for pair in failed)
    report = {
        "schema": SCHEMA,
        "about": dict(provenance.about),
        "inputs": dict(provenance.inputs),
        "method": dict(provenance.method),
        "protocol": dict(provenance.protocol),
        "environment": describe_environment(),
        "num_pairs": len(pairs),
        "num_failed": len(failed),
        "summary": summarise(whole, without_figures, partly),
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


TOLD = ("about", "inputs", "method", "protocol")
"""Keys of a report that say what its figures are of."""


def as_markdown(report: Mapping[str, Any]) -> str:
    """Return the report's table and failures as Markdown."""
    lines = [f"{report['num_pairs']} pairs, {report['num_failed']} failed."]
    lines += ["", *(f"- {key}: {told(report[key])}" for key in TOLD if report[key])]
    lines.append(f"- code: {report['environment']['git_sha']}")
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


def told(settings: Mapping[str, Any]) -> str:
    """Return settings as one line of text, without those that are null."""
    return ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None)


def _without_nan(value: Any) -> Any:
    """Return a JSON value in which NaN, which JSON lacks, is null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
