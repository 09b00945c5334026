"""benchmarks/denoiser.py at small size: every case gives figures, and no case stops the others."""

import importlib
import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def run(benchmark, out, *arguments):
    options = ("--out", str(out), "--steps", "1", "--no-compile", "--minutes", "2")
    benchmark("denoiser").main([*options, *arguments])
    return {row["case"]: row for row in json.loads(out.read_text())["cases"]}


def test_every_case_gives_figures(benchmark, tmp_path, capsys):
    rows = run(benchmark, tmp_path / "figures.json", "--models", "sd35m")
    assert not [row for row in rows.values() if "failed" in row]
    assert list(rows) == [
        "peak: product of square matrices",
        "joint attention",
        "sd35m: training step, eager",
        "sd35m: flash attention alone is allowed",
        "sd35m: 4 sampling steps with guidance",
        "loss curve, bfloat16 against float32",
        "training step under Lightning",
    ]
    assert rows["joint attention"]["largest_gap"] < 1e-5
    step = rows["sd35m: training step, eager"]
    assert step["tflop_per_s"] == pytest.approx(step["tflop"] / step["seconds"])
    curves = rows["loss curve, bfloat16 against float32"]
    for curve in (curves["float32_loss"], curves["bfloat16_loss"]):
        assert len(curve) == 30
        assert curve[-1] < 0.95 * curve[0]
    assert 0 < curves["largest_gap"] < 0.1
    overhead = rows["training step under Lightning"]
    assert overhead["seconds"] > 0 < overhead["bare_s"]
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


def test_a_case_without_memory_is_reported_and_the_next_one_runs(benchmark, tmp_path, monkeypatch):
    models = benchmark("denoiser_models")

    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(models.Model, "sample", no_memory)
    monkeypatch.setattr(benchmark("denoiser"), "framework_overhead", lambda *_: {"seconds": 1.0})
    rows = run(benchmark, tmp_path / "figures.json", "--models", "flux2_klein")
    failed = [case for case, row in rows.items() if "failed" in row]
    assert failed == ["flux2_klein: 4 sampling steps with guidance"]
    assert "Tried to allocate 2.00 GiB" in rows[failed[0]]["failed"]
    assert rows["training step under Lightning"]["seconds"] == 1.0


def test_without_time_nothing_is_started(benchmark, tmp_path):
    rows = run(benchmark, tmp_path / "figures.json", "--minutes", "-1")
    assert all("left out" in row["failed"] for row in rows.values())
    assert len(rows) == 6  # a model that was not built has no other cases


def test_the_naive_attention_is_attention(benchmark):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 7, 4) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    naive = benchmark("denoiser_models").naive_attention(query, key, value)
    torch.testing.assert_close(naive, expected)
