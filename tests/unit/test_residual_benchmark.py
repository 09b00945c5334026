"""The table of benchmarks/residual.py."""

import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_assets_are_compared_one_by_one_and_a_failure_is_the_worst(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    residual = importlib.import_module("residual")
    scores = {"a": (0.5, 0.7), "b": (0.9, 0.9), "c": (0.6, None), "d": (0.4, 0.45)}
    rows = []
    for uid, pair in scores.items():
        for method, score in zip(("classical-96", "refined-96"), pair, strict=True):
            figures = {key: score for key in residual.SHOWN} if score else {"failed": "no surface"}
            rows.append({"set": "64 mild", "uid": uid, "method": method, "figures": figures})
    rows.append({"set": "64 mild", "uid": "e", "method": "classical-96", "figures": figures})
    file = tmp_path / "mild.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    pairs = residual.read_pairs(file)
    assert pairs["f_score_0.01"][0].tolist() == [0.5, 0.9, 0.6, 0.4]
    assert pairs["f_score_0.01"][1].tolist() == [0.7, 0.9, 0.0, 0.45]
    [_, _, line] = residual.table({"mild": pairs}).splitlines()
    assert line.startswith("| mild | 4 | 0.550, 0.575 (-0.088; 2:1) |")
    residual.draw({"mild": pairs}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
