"""The table of benchmarks/rebuild_comparison.py."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def comparison(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("rebuild_comparison")


def write(comparison, file: Path, scores: Mapping[str, Mapping[str, float | None]]) -> Path:
    """Write rows of the same score in every figure, by method and asset; None is a failure."""
    rows = []
    for method, assets in scores.items():
        for uid, score in assets.items():
            figures = dict.fromkeys(comparison.SHOWN, score) if score else {"failed": "no surface"}
            rows.append({"set": "64 mild", "uid": uid, "method": method, "figures": figures})
    file.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return file


def test_assets_are_compared_one_by_one_and_a_failure_is_the_worst(comparison, tmp_path: Path):
    classical = {"a": 0.5, "b": 0.9, "c": 0.6, "d": 0.4, "e": None}
    refined = {"a": 0.7, "b": 0.9, "c": None, "d": 0.45}
    scores = {"classical-96": classical, "refined-96": refined}
    rows = comparison.read_rows(
        write(comparison, tmp_path / "mild.jsonl", scores), comparison.METHODS
    )
    first, other = comparison.columns(rows, "f_score_0.01")
    assert first.tolist() == [0.5, 0.9, 0.6, 0.4]
    assert other.tolist() == [0.7, 0.9, 0.0, 0.45]
    [_, _, line] = comparison.table({"mild": rows}).splitlines()
    assert line.startswith("| mild | 4 | 0.550, 0.575 (-0.088; 2:1) |")
    comparison.draw({"mild": rows}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_the_first_method_is_compared_with_every_other_and_every_model(comparison, tmp_path: Path):
    scores = {
        "tsdf-128": {"a": 0.2, "b": 0.3},
        "refined-96 two/pipeline": {"a": 0.6, "b": 0.8},
        "refined-96 one/pipeline": {"a": 0.4},
        "classical-96": {"a": 0.5, "b": 0.7},
    }
    file = write(comparison, tmp_path / "mild.jsonl", scores)
    rows = comparison.read_rows(file, ["classical-96", "refined-96", "tsdf-128"])
    table = comparison.table({"mild": rows}).splitlines()[2:]
    assert [line.split("|")[1:4] for line in table] == [
        [" mild, `refined-96 one/pipeline` ", " 1 ", " 0.500, 0.400 (-0.100; 0:1) "],
        [" mild, `refined-96 two/pipeline` ", " 2 ", " 0.600, 0.700 (+0.100; 2:0) "],
        [" mild, `tsdf-128` ", " 2 ", " 0.600, 0.250 (-0.350; 0:2) "],
    ]
    with pytest.raises(SystemExit, match="holds rows of tsdf-128"):
        comparison.read_rows(file, ["classical-96", "poisson-7"])
