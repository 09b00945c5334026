"""Two reports are compared pair by pair: what must be found is known beforehand."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.command_line import named
from data_pipeline.contract import UserError
from modules.reporting.comparison import compare_files, compare_reports, told_sets

RESAMPLES = 2000


def report(f_scores: dict[str, float | None], **options: float) -> dict:
    """Return a report of pairs by name; None: the pair failed."""
    pairs = [
        {
            "name": name,
            "failed": "no mesh" if score is None else None,
            "metrics": {} if score is None else {"f_score_0.02": score, "chamfer_l1": 1.0 - score},
        }
        for name, score in f_scores.items()
    ]
    summary = {key: {"median": 0.0} for key in ("f_score_0.02", "chamfer_l1")}
    return {"schema": 1, "options": {"seed": 0, **options}, "summary": summary, "pairs": pairs}


def scores(values: np.ndarray) -> dict[str, float | None]:
    return {f"asset{i:02d}": float(value) for i, value in enumerate(values)}


def compare(first: dict, second: dict) -> dict:
    found = compare_reports(first, second, resamples=RESAMPLES, seed=0)
    return {row.note.key: row for row in found}


def test_a_small_gain_on_every_pair_is_certain_though_the_pairs_differ_widely():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 0.9, 40)
    gain = 0.01 + 0.004 * rng.standard_normal(40)
    rows = compare(report(scores(base)), report(scores(base + gain)))
    row = rows["f_score_0.02"]
    assert row.verdict == "better"
    assert row.low < gain.mean() < row.high
    assert row.num_pairs == 40
    # For a mean of many, the interval is that of the normal distribution.
    half = 1.96 * gain.std(ddof=1) / np.sqrt(40)
    assert row.high - row.low == pytest.approx(2 * half, rel=0.12)
    assert rows["chamfer_l1"].verdict == "better"  # by falling
    back = compare(report(scores(base + gain)), report(scores(base)))
    assert {row.verdict for row in back.values()} == {"worse"}


def test_noise_without_a_gain_has_no_verdict():
    rng = np.random.default_rng(1)
    base, noise = rng.uniform(0.2, 0.9, 40), rng.standard_normal(40)
    noise -= noise.mean()
    rows = compare(report(scores(base)), report(scores(base + 0.01 * noise)))
    assert rows["f_score_0.02"].verdict == ""
    assert rows["f_score_0.02"].low < 0.0 < rows["f_score_0.02"].high


def test_equal_reports_differ_by_nought():
    row = compare(report({"a": 0.5, "b": 0.6}), report({"a": 0.5, "b": 0.6}))["f_score_0.02"]
    assert (row.change, row.low, row.high, row.verdict) == (0.0, 0.0, 0.0, "")


def test_a_failed_pair_counts_at_its_worst():
    first, second = report({"a": 0.5, "b": 0.6}), report({"a": 0.5, "b": None})
    rows = compare(first, second)
    assert rows["f_score_0.02"].change == pytest.approx(-0.3)
    assert rows["chamfer_l1"].change == pytest.approx(0.3)


def test_a_pair_that_failed_twice_brings_no_figure_that_neither_report_has():
    rows = compare(report({"a": 0.5, "b": None}), report({"a": 0.6, "b": None}))
    assert rows.keys() == {"f_score_0.02", "chamfer_l1"}


def test_reports_that_cannot_be_compared_are_refused(tmp_path: Path):
    def write(name: str, content: object) -> Path:
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    good = write("good.json", report({"a": 0.5, "b": 0.7}))
    cases = {
        "differ in num_views": write("views.json", report({"a": 0.5}, num_views=2)),
        "no pair in common": write("others.json", report({"c": 0.5})),
        "does not exist": tmp_path / "none.json",
        "no report of schema 1": write("old.json", {"schema": 0}),
    }
    for problem, other in cases.items():
        with pytest.raises(UserError, match=problem):
            compare_files(good, other, resamples=100, seed=0)
    text = compare_files(good, write("more.json", report({"a": 1, "d": 1})), resamples=100, seed=0)
    assert "1 pairs are only in" in text
    assert "such as b: left out" in text


def test_leading_arguments_need_no_key():
    assert named(["a b.json", "c.json", "seed=1"], "first", "second") == [
        "first=a b.json",
        "second=c.json",
        "seed=1",
    ]
    assert named(["--help"], "first") == ["--help"]
    assert named(["second=x", "first=y"], "first", "second") == ["second=x", "first=y"]


def test_figures_of_whole_sets_are_told_without_an_interval():
    first, second = report({"a": 0.5}), report({"a": 0.6})
    assert told_sets(first, second) == []
    first["sets"] = {"figures": {"fid": 12.5, "kid": 0.011}}
    second["sets"] = {"figures": {"fid": 9.25, "kid": None}}
    (line,) = told_sets(first, second)
    assert line.startswith("FID")
    assert line.endswith("12.50, 9.25")
