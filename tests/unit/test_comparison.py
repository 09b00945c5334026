"""Two reports are compared pair by pair: what must be found is known beforehand."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.command_line import named
from data_pipeline.contract import UserError
from modules.metrics.scoring import failure_figure, summarise
from modules.reporting.comparison import (
    FEWEST_PAIRS,
    as_markdown,
    compare_files,
    compare_reports,
    told_sets,
)

RESAMPLES = 2000


def report(f_scores: dict[str, float | None], **protocol: object) -> dict:
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
    return {
        "schema": 2, "about": {"task": "meshes"}, "method": {"grid": 96},
        "protocol": {"seed": 0, **protocol}, "environment": {"git_sha": "abc"},
        "summary": summary, "pairs": pairs,
    }  # fmt: skip


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
    # For a mean of many, the interval is Student's.
    half = 2.02 * gain.std(ddof=1) / np.sqrt(40)
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
    some = report(scores(np.linspace(0.3, 0.9, FEWEST_PAIRS)))
    row = compare(some, some)["f_score_0.02"]
    assert (row.change, row.low, row.high, row.verdict) == (0.0, 0.0, 0.0, "")


def test_a_failed_pair_is_never_better_than_the_worst_of_either_report():
    first, second = report({"a": 0.5, "b": 0.6}), report({"a": 0.5, "b": None})
    rows = compare(first, second)
    assert rows["f_score_0.02"].change == pytest.approx(-0.3)
    assert rows["chamfer_l1"].change == pytest.approx(0.3)
    first["pairs"][1]["metrics"]["chamfer_l1"] = 4.0  # further off than the cube's side
    assert compare(first, second)["chamfer_l1"].change == 0.0
    first["pairs"][0]["metrics"]["chamfer_l1"] = 9.0
    assert compare(first, second)["chamfer_l1"].second == pytest.approx((0.5 + 9.0) / 2)
    worst = summarise([{"chamfer_l1": 9.0}], num_failed=1)["chamfer_l1"]
    assert worst["p10"] == worst["p90"] == failure_figure("chamfer_l1", [9.0]) == 9.0
    assert failure_figure("ssim_masked", [-0.2]) == -0.2
    assert np.isnan(failure_figure("faces", [9.0]))


@pytest.mark.parametrize("count", [1, 2, 5, FEWEST_PAIRS - 1])
def test_few_pairs_have_no_verdict_however_large_the_gain(count, tmp_path):
    base = np.linspace(0.2, 0.3, count)
    first, second = report(scores(base)), report(scores(base + 0.5))
    row = compare(first, second)["f_score_0.02"]
    assert row.change == pytest.approx(0.5)
    assert row.verdict == ""
    assert np.isnan([row.low, row.high]).all()
    for name, each in (("first", first), ("second", second)):
        (tmp_path / name).write_text(json.dumps(each))
    text = compare_files(tmp_path / "first", tmp_path / "second", resamples=1000, seed=0)
    assert "too few pairs" in text
    assert "no verdict below 10 pairs" in text
    assert "better" not in text


def test_the_interval_of_ten_pairs_is_as_wide_as_students():
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(20):
        noise = rng.standard_normal(10)
        row = compare(report(scores(np.zeros(10))), report(scores(noise)))["f_score_0.02"]
        ratios.append((row.high - row.low) / 2 / (2.262 * noise.std(ddof=1) / np.sqrt(10)))
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.05)  # of the plain percentiles: 0.82


def test_the_same_gain_on_ten_pairs_needs_no_interval():
    base = report(scores(np.full(10, 0.25)))
    rows = compare_reports(base, report(scores(np.full(10, 0.5))), resamples=RESAMPLES, seed=0)
    assert (rows[0].low, rows[0].high, rows[0].verdict) == (0.25, 0.25, "better")
    assert "the same for all" in as_markdown(rows)


def test_methods_may_differ_and_are_told_but_truths_may_not(tmp_path):
    first, second = report({"a": 0.5, "b": 0.6}), report({"a": 0.5, "b": 0.6})
    second["method"] = {"grid": 128, "steps": 40}
    for name, each in (("first", first), ("second", second)):
        (tmp_path / name).write_text(json.dumps(each))
    text = compare_files(tmp_path / "first", tmp_path / "second", resamples=1000, seed=0)
    assert "first: task meshes, grid 96, code abc" in text
    assert "second: task meshes, grid 128, steps 40, code abc" in text
    for pair in (*first["pairs"], *second["pairs"]):
        pair |= {"truth": "mesh", "truth_digest": "aa"}
    compare(first, second)
    second["pairs"][1]["truth_digest"] = None  # it failed before its truth was read
    compare(first, second)
    second["pairs"][1]["truth_digest"] = "bb"
    with pytest.raises(UserError, match=r"1 of 2 pairs .* different truths, such as b \(aa, bb\)"):
        compare(first, second)
    second["pairs"][0]["truth"] = "samples"
    with pytest.raises(UserError, match=r"such as a \(mesh, samples\)"):
        compare(first, second)


def test_figures_are_compared_that_both_took_by_the_same_network():
    def images(**networks: str | None) -> dict:
        made = report({}, **networks)
        metrics = {"clip_score": 20.0, "r_precision": 0.5}
        made["pairs"] = [{"name": "a", "failed": None, "metrics": metrics}]
        made["summary"] = {key: {} for key in metrics}
        made["sets"] = {"figures": {"cmmd": 1.0}, "num_images": 9, "num_reference_images": 9}
        return made

    one, two = images(clip="x", dinov2=None), images(clip="x", dinov2="y")
    assert compare(one, two).keys() == {"clip_score", "r_precision"}
    assert len(told_sets(one, two)) == 1
    other = images(clip="z", dinov2="y")
    assert compare(two, other) == {}
    assert told_sets(two, other) == []
    prompts = images(clip="x", dinov2="y", prompts="others as well")
    assert compare(two, prompts).keys() == {"clip_score"}
    two["sets"]["num_images"] = 8
    assert "different numbers of images" in told_sets(one, two)[1]


@pytest.mark.parametrize("given", [{"resamples": 0, "seed": 0}, {"resamples": 1000, "seed": -1}])
def test_settings_that_resample_nothing_are_refused(given):
    with pytest.raises(UserError, match=r"at least (0|1000)"):
        compare_reports(report({"a": 0.5}), report({"a": 0.5}), **given)


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
        "no report of schema 2": write("old.json", {"schema": 1}),
    }
    for problem, other in cases.items():
        with pytest.raises(UserError, match=problem):
            compare_files(good, other, resamples=1000, seed=0)
    text = compare_files(good, write("more.json", report({"a": 1, "d": 1})), resamples=1000, seed=0)
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
