"""Tasks of eval.py: what they take, what they refuse, and when nothing was measured."""

import json
import runpy
from pathlib import Path

import pytest
import trimesh

from data_pipeline.command_line import compose
from data_pipeline.contract import UserError

MAIN = runpy.run_path(str(Path(__file__).resolve().parents[2] / "eval.py"))["main"]
QUICK = ("num_samples=1000", "num_views=1", "resolution_px=32")


def evaluate(*arguments: str) -> None:
    MAIN(compose("eval", [*arguments, *QUICK]))


@pytest.fixture(scope="module")
def balls(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("balls")
    for name in "abcd":
        trimesh.creation.icosphere(1, 1.0).export(folder / f"{name}.glb")
    return folder


def test_a_count_of_pairs_is_scored(balls, tmp_path):
    given = ("task=meshes", f"meshes={balls}", f"reference={balls}", f"out={tmp_path}")
    evaluate(*given, "count=2")
    report = json.loads((tmp_path / "report.json").read_text())
    assert sorted(pair["name"] for pair in report["pairs"]) == ["a", "c"]
    assert report["about"]["count"] == "2"
    assert "- protocol: num_samples 1000" in (tmp_path / "report.md").read_text()
    assert "num_samples" in (tmp_path / "report.html").read_text()
    with pytest.raises(UserError, match="count=-1"):
        evaluate(*given, "count=-1")


def test_where_all_pairs_failed_nothing_was_measured_and_the_report_says_why(balls, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in "ab":
        (broken / f"{name}.glb").write_bytes(b"glTF")
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"nothing was measured: all 4 pairs failed, such as a: "):
        evaluate("task=meshes", f"meshes={broken}", f"reference={balls}", f"out={out}")
    assert json.loads((out / "report.json").read_text())["num_failed"] == 4


@pytest.mark.parametrize("wrong", ["grid=-3", "grid=100000", "grid=33", "texture_px=0", "seed=-1"])
@pytest.mark.parametrize("task", ["rebuild", "latents", "text_to_3d"])
def test_what_no_mesh_can_be_made_of_is_refused_before_any_work(task, wrong, tmp_path):
    inputs = (f"{key}={tmp_path}/none" for key in ("shards", "autoencoder", "checkpoint"))
    with pytest.raises(UserError, match=wrong):
        evaluate(f"task={task}", *inputs, f"out={tmp_path}/out", wrong)
    assert not (tmp_path / "out").exists()
