"""Two reports of the same pairs: by how much one method is better, and how sure that is.

Pairs are matched by name, and it is their differences that are resampled: assets differ far more
from each other than methods do on one asset, so intervals of two means would tell nothing.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy import ndarray
from scipy.stats import bootstrap, norm, t

from data_pipeline.contract import UserError
from modules.metrics.scoring import check_seed, failure_figure
from modules.reporting.figure_notes import FIGURE_NOTES, FigureNote
from modules.reporting.report import SCHEMA, told

CONFIDENCE = 0.95

FEWEST_PAIRS, FEWEST_RESAMPLES = 10, 1000
"""Fewer pairs say too little of the spread of others; fewer resamples do not reach its ends."""

SETS = ("fid", "kid", "cmmd", "fd_dinov2")

OF_IMAGES = ("decoded_", "excess_", "input_view_", "latent_", "nearest_")
"""How figures begin that are taken of rendered images, and so depend on how these were rendered."""

FIGURES_OF = {
    "clip": ("clip_score", "r_precision", "cmmd"),
    "prompts": ("r_precision",),
    "dinov2": ("fd_dinov2",),
    "inception": ("fid", "kid"),
    "kid_subset_size": ("kid",),
    "reference_images": SETS,
    "lpips_weights": ("lpips_masked", "lpips_unmasked"),
    "shards": tuple(
        note.key for note in FIGURE_NOTES if note.key.startswith(OF_IMAGES) or "_right" in note.key
    ),
}
"""Keys of the protocol that some figures alone depend on; on any other one all depend."""


@dataclass(frozen=True)
class Difference:
    """One figure of two methods over the same pairs.

    Args:
        note: of the figure.
        first, second: means.
        change: mean of second minus first.
        low, high: ends of the interval of `change`, at `CONFIDENCE`; NaN for fewer pairs than
            `FEWEST_PAIRS`.
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
        """Whether the second is better or worse; empty where the interval does not tell."""
        if not self.note.better or not (self.low > 0.0 or self.high < 0.0):
            return ""
        return "better" if (self.change > 0.0) == (self.note.better == "higher") else "worse"


def compare_files(first: Path, second: Path, *, resamples: int, seed: int) -> str:
    """Return the comparison of two report.json files as text; see `compare_reports`."""
    reports = read_report(first), read_report(second)
    differences = compare_reports(*reports, resamples=resamples, seed=seed)
    lines = []
    for path, report in zip((first, second), reports, strict=True):
        made = told(report["about"] | report["method"])
        lines.append(f"{path}: {made}, code {report['environment']['git_sha']}")
    lines += ["", as_markdown(differences), *told_sets(*reports)]
    if any(row.num_pairs < FEWEST_PAIRS for row in differences):
        lines.append(f"no interval and no verdict below {FEWEST_PAIRS} pairs: evaluate more")
    for key in differing(*reports):
        lines.append(f"the reports differ in {key}: left out {', '.join(FIGURES_OF[key])}")
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

    How the meshes were made may differ, how figures were taken may not: a figure is left out where
    a key of `FIGURES_OF` says that it was taken in another way.

    Args:
        first: report of one method.
        second: report of another on the same pairs; a failed pair counts as the worst pair of
            either report (`failure_figure`).
        resamples: of the bootstrap, see `_interval`.
        seed: of the resampling.

    Raises:
        UserError: the figures were all taken in different ways, no pair is in both, or one was
            judged by different truths.
    """
    check_seed(seed)
    if resamples < FEWEST_RESAMPLES:
        raise UserError(f"resamples={resamples} is too few: give at least {FEWEST_RESAMPLES}")
    keys = differing(first, second)
    if common := [key for key in keys if key not in FIGURES_OF]:
        raise UserError(f"the reports differ in {', '.join(common)}: evaluate both alike")
    left_out = {figure for key in keys for figure in FIGURES_OF[key]}
    pairs = [{pair["name"]: pair for pair in report["pairs"]} for report in (first, second)]
    names = sorted(pairs[0].keys() & pairs[1].keys())
    if not names:
        raise UserError("the reports have no pair in common: they are matched by name")
    _check_truths(pairs, names)
    differences = []
    for note in FIGURE_NOTES:
        in_both = all(note.key in report["summary"] for report in (first, second))
        if note.key in left_out or not in_both:
            continue  # without a summary, pairs that failed on both sides would make it up
        both = _values(pairs, names, note.key)
        if both.shape[1]:
            change = both[1] - both[0]
            first_mean, second_mean, mean = (float(each.mean()) for each in (*both, change))
            low, high = _interval(change, resamples, seed)
            differences.append(
                Difference(note, first_mean, second_mean, mean, low, high, len(change))
            )
    return differences


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return the keys of the protocol in which two reports differ."""
    protocols = [report["protocol"] for report in (first, second)]
    keys = sorted({*protocols[0], *protocols[1]})
    return [key for key in keys if protocols[0].get(key) != protocols[1].get(key)]


def _check_truths(pairs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Raise UserError if a pair was judged by different truths; a failed one may know none."""
    for key in ("truth", "truth_digest"):
        values = [[side[name].get(key) for name in names] for side in pairs]
        other = [
            (name, *both)
            for name, *both in zip(names, *values, strict=True)
            if None not in both and both[0] != both[1]
        ]
        if other:
            name, *both = other[0]
            raise UserError(
                f"{len(other)} of {len(names)} pairs were judged by different truths, such as "
                f"{name} ({both[0]}, {both[1]}): evaluate both against the same references"
            )


def told_sets(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return a line for every figure of whole sets (FID, ...) that both reports have.

    Such a figure is one number of all images: there are no pairs to resample, so no interval.
    """
    sets = [report.get("sets") or {} for report in (first, second)]
    found = [each.get("figures", {}) for each in sets]
    left_out = {name for key in differing(first, second) for name in FIGURES_OF.get(key, ())}
    lines = []
    for note in FIGURE_NOTES:
        if note.key not in left_out and all(figures.get(note.key) is not None for figures in found):
            values = [f"{figures[note.key]:.{note.digits}f}" for figures in found]
            lines.append(f"{note.label} of the sets, no interval: {values[0]}, {values[1]}")
    counts = [[each.get(key) for key in ("num_images", "num_reference_images")] for each in sets]
    if lines and counts[0] != counts[1]:
        lines.append("the sets hold different numbers of images, on which these figures depend")
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
        interval = "too few pairs" if math.isnan(row.low) else f"{low} to {high}"
        if row.low == row.high:
            interval = "the same for all"
        lines.append(
            f"| {row.note.label} | {first} | {second} | {change} | {interval} "
            f"| {row.verdict} | {row.num_pairs} |"
        )
    return "\n".join(lines)


def _values(
    pairs: Sequence[Mapping[str, Any]], names: Sequence[str], key: str
) -> Float64[ndarray, "2 n"]:
    """Return a figure of both reports, of the pairs for which it exists in both.

    A failed pair counts as what its report says (images), else as the worst pair of either.
    """

    def value(pair: Mapping[str, Any]) -> float:
        found = pair["metrics"].get(key)
        return math.nan if found is None else float(found)

    both = np.array([[value(side[name]) for name in names] for side in pairs])
    worst = failure_figure(key, both[np.isfinite(both)].tolist())
    for row, side in zip(both, pairs, strict=True):
        failed = np.array([side[name]["failed"] is not None for name in names])
        row[failed & ~np.isfinite(row)] = worst
    return both[:, np.isfinite(both).all(axis=0)]


def _interval(change: Float64[ndarray, " n"], resamples: int, seed: int) -> tuple[float, float]:
    """Return the interval of a mean at `CONFIDENCE`; NaN for fewer than `FEWEST_PAIRS`.

    That of the percentile bootstrap is too narrow for few pairs. It is expanded as Hesterberg
    (2015, doi:10.1080/00031305.2015.1089789) does: to the level at which a normal distribution
    would give Student's interval. Differences that are all equal give an interval without width.
    """
    n = len(change)
    if n < FEWEST_PAIRS:
        return math.nan, math.nan
    quantile = math.sqrt(n / (n - 1)) * t.ppf((1.0 + CONFIDENCE) / 2.0, n - 1)
    interval = bootstrap(
        (change,), np.mean, n_resamples=resamples, method="percentile", batch=max(1, 10**7 // n),
        confidence_level=1.0 - 2.0 * float(norm.sf(quantile)), rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(interval.low), float(interval.high)
