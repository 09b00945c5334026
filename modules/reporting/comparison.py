"""Two reports of the same pairs: by how much one method is better, and how sure that is.

Pairs are matched by name, and it is their differences that are resampled: assets differ far more
from each other than methods do on one asset, so intervals of two means would tell nothing.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy import ndarray
from scipy.stats import bootstrap

from data_pipeline.contract import UserError
from modules.metrics.scoring import FAILURE_FIGURES
from modules.reporting.evaluation import SCHEMA
from modules.reporting.figure_notes import FIGURE_NOTES, FigureNote

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """One figure of two methods over the same pairs.

    Args:
        note: of the figure.
        first, second: means.
        change: mean of second minus first.
        low, high: ends of the interval of `change`, at `CONFIDENCE`.
        num_pairs: pairs that have the figure in both reports.
    """

    note: FigureNote
    first: float
    second: float
    change: float
    low: float
    high: float
    num_pairs: int

    @property
    def verdict(self) -> str:
        """Whether the second is better or worse; empty where the interval holds nought."""
        if not self.note.better or self.low <= 0.0 <= self.high:
            return ""
        return "better" if (self.change > 0.0) == (self.note.better == "higher") else "worse"


def compare_files(first: Path, second: Path, *, resamples: int, seed: int) -> str:
    """Return the comparison of two report.json files as text; see `compare_reports`."""
    reports = read_report(first), read_report(second)
    lines = [as_markdown(compare_reports(*reports, resamples=resamples, seed=seed))]
    lines += told_sets(*reports)
    for path, names in zip((first, second), unmatched(*reports), strict=True):
        if names:
            lines.append(f"{len(names)} pairs are only in {path}, such as {names[0]}: left out")
    return "\n".join(lines)


def read_report(path: Path) -> dict[str, Any]:
    """Return a report that `eval.py` wrote.

    Raises:
        UserError: there is none at `path`, or it follows another schema.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give a report.json that eval.py wrote") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no report.json of eval.py: {error}") from error
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise UserError(f"{path} is no report of schema {SCHEMA}: evaluate again")
    return report


def compare_reports(
    first: Mapping[str, Any], second: Mapping[str, Any], *, resamples: int, seed: int
) -> list[Difference]:
    """Return the differences of all figures that both reports have, in the order of tables.

    Args:
        first: report of one method.
        second: report of another on the same pairs; a failed pair counts at its worst, as in
            `summary`.
        resamples: of the bootstrap (bias-corrected and accelerated; Efron, 1987).
        seed: of the resampling.

    Raises:
        UserError: the figures were taken in different ways, or no pair is in both.
    """
    if first["options"] != second["options"]:
        differing = sorted(
            key
            for key in {*first["options"], *second["options"]}
            if first["options"].get(key) != second["options"].get(key)
        )
        raise UserError(f"the reports differ in {', '.join(differing)}: evaluate both alike")
    pairs = [{pair["name"]: pair for pair in report["pairs"]} for report in (first, second)]
    names = sorted(pairs[0].keys() & pairs[1].keys())
    if not names:
        raise UserError("the reports have no pair in common: they are matched by name")
    differences = []
    for note in FIGURE_NOTES:
        if not all(note.key in report["summary"] for report in (first, second)):
            continue  # else pairs that failed on both sides would make it up
        both = np.array([[_value(side[n], note.key) for n in names] for side in pairs])
        both = both[:, np.isfinite(both).all(axis=0)]
        if both.shape[1]:
            differences.append(_difference(note, both, resamples, seed))
    return differences


def told_sets(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return a line for every figure of whole sets (FID, ...) that both reports have.

    Such a figure is one number of all images: there are no pairs to resample, so no interval.
    """
    found = [(report.get("sets") or {}).get("figures", {}) for report in (first, second)]
    lines = []
    for note in FIGURE_NOTES:
        if all(figures.get(note.key) is not None for figures in found):
            values = [f"{figures[note.key]:.{note.digits}f}" for figures in found]
            lines.append(f"{note.label} of the sets, no interval: {values[0]}, {values[1]}")
    return lines


def unmatched(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the names of the pairs that only one of the reports has."""
    names = [{pair["name"] for pair in report["pairs"]} for report in (first, second)]
    return sorted(names[0] - names[1]), sorted(names[1] - names[0])


def as_markdown(differences: list[Difference]) -> str:
    """Return the differences as a Markdown table."""
    lines = [
        f"| figure | first | second | second - first | {CONFIDENCE:.0%} interval | second is | n |",
        "|---|---:|---:|---:|---:|---|---:|",
    ]
    for row in differences:
        digits = row.note.digits + 1
        first, second, change, low, high = (
            f"{value:.{digits}f}"
            for value in (row.first, row.second, row.change, row.low, row.high)
        )
        lines.append(
            f"| {row.note.label} | {first} | {second} | {change} | {low} to {high} "
            f"| {row.verdict} | {row.num_pairs} |"
        )
    return "\n".join(lines)


def _value(pair: Mapping[str, Any], key: str) -> float:
    """Return a pair's figure; NaN where it has none. Failed images carry what they count as."""
    counts_as_worst = pair["failed"] is not None and "prompt" not in pair
    found = FAILURE_FIGURES.get(key) if counts_as_worst else pair["metrics"].get(key)
    return math.nan if found is None else float(found)


def _difference(
    note: FigureNote, both: Float64[ndarray, "2 n"], resamples: int, seed: int
) -> Difference:
    change = both[1] - both[0]
    low = high = float(change.mean())
    if np.ptp(change) > 0.0:  # else there is nothing to resample, and the method divides by zero
        interval = bootstrap(
            (change,), np.mean, n_resamples=resamples, confidence_level=CONFIDENCE,
            rng=np.random.default_rng(seed),
        ).confidence_interval  # fmt: skip
        low, high = float(interval.low), float(interval.high)
    return Difference(
        note, float(both[0].mean()), float(both[1].mean()), float(change.mean()), low, high,
        both.shape[1],
    )  # fmt: skip
