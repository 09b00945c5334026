"""The peers and the table of benchmarks/rebuild.py."""

import dataclasses
import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic import ORTHO6, observe, sphere
from sphere_shards import write_sphere_shards

from data_pipeline.shards.manifest import ShardSet
from modules.geometry.lift import lift
from modules.geometry.rasterize import render_mesh
from modules.metrics.geometry import MeshSurface
from modules.metrics.mesh_quality import mesh_quality
from modules.metrics.scoring import ScoringOptions, score

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def sphere_seen_at(resolution_px: int):
    images, hit = observe(sphere(), resolution_px)
    return lift(images.astype(np.float64), ORTHO6, hit)


def test_fusion_of_a_spheres_depths_is_that_sphere(benchmark):
    shape = benchmark("rebuild_peers").tsdf(sphere_seen_at(64), 64)
    radius = np.linalg.norm(shape.vertices, axis=1)
    assert np.abs(np.median(radius) - 0.4) < 0.005  # it swells at the outlines of other views
    assert np.percentile(np.abs(radius - 0.4), 90) < 1.1 / 64


def test_fusion_says_nothing_of_space_that_no_view_saw(benchmark):
    observation = sphere_seen_at(64)
    first = {
        name: getattr(observation, name)[:1]
        for name in ("cameras", "hit", "silhouette", "depth", "rgb")
    }
    only_front = dataclasses.replace(observation, **first)
    shape = benchmark("rebuild_peers").tsdf(only_front, 64)
    assert shape.vertices[:, 1].max() < 0.05  # azimuth 0 looks along +Y: the back half is unseen
    assert mesh_quality(shape.vertices, shape.faces)["watertight"] == 0.0


def test_poisson_rebuilds_a_sphere_where_open3d_is_installed(benchmark):
    pytest.importorskip("open3d", reason="Open3D is for the benchmark alone", exc_type=ImportError)
    shape = benchmark("rebuild_peers").poisson(sphere_seen_at(64), depth=6, trim=0.0)
    radius = np.linalg.norm(shape.vertices, axis=1)
    assert np.abs(np.median(radius) - 0.4) < 0.002


def test_without_open3d_the_benchmark_says_what_to_do(benchmark, monkeypatch):
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(SystemExit, match="pip install open3d"):
        benchmark("rebuild_peers").load_open3d()


def test_what_a_peer_makes_can_be_scored_and_drawn(benchmark):
    ball = benchmark("rebuild_peers").tsdf(sphere_seen_at(64), 64)
    surface = MeshSurface(ball.vertices, ball.faces)
    figures = score(ball, surface, None, ScoringOptions(num_samples=1000))
    assert figures["f_score_0.005"] == 1.0
    views = render_mesh(ball, ORTHO6, 16)
    assert views.hit.any()
    assert np.allclose(views.rgb, 1.0)  # white


def test_a_failed_rebuild_counts_as_the_worst_in_the_table(benchmark, capsys):
    good = {"f_score_0.01": 1.0, "chamfer_l1": 0.001, "watertight": 1.0, "cpu_s": 2.0}
    rows = {("a", "tsdf-128"): good, ("b", "tsdf-128"): {"failed": "no surface"}}
    benchmark("rebuild").print_table(rows, ["tsdf-128"])
    line = capsys.readouterr().out.splitlines()[-1]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[0] == "tsdf-128"
    assert cells[2] == "0.500, 0.100"  # F@.01: median and p10 of 1 and 0
    assert cells[-1] == "1"


def test_methods_read_true_spoilt_or_sampled_images_with_the_foreground_that_is_known(
    benchmark, monkeypatch, tmp_path
):
    shards = ShardSet(write_sphere_shards(tmp_path / "shards", num_samples=1), "samples")
    rebuild = benchmark("rebuild")

    class Darker:
        def __init__(self, pipeline: Path, device: torch.device) -> None:
            assert pipeline == Path("p")

        def __call__(self, sample, strength):
            return (1.0 - strength) * sample["images"], ORTHO6

    monkeypatch.setattr(rebuild, "DiffusionRoundTrip", Darker)

    def seen(inputs: str) -> dict:
        asked = Namespace(inputs=inputs, diffusion=Path("p"), strength=0.4, autoencoder=None)
        return rebuild._inputs(shards, 0, asked)

    true, spoilt, sampled = seen("true"), seen("strong"), seen("sampled")
    assert true["hit"].any()
    assert spoilt["images"].shape[1] == len(spoilt["cameras"]) == len(spoilt["hit"]) == 5
    assert sampled["hit"] is None
    np.testing.assert_allclose(sampled["images"], 0.6 * true["images"], rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--inputs", "sampled"], "sampled needs --diffusion"),
        (["--inputs", "decoded"], "decoded needs --autoencoder"),
        (["--diffusion", "p"], "nothing else takes it"),
    ],
)
def test_made_inputs_need_the_model_that_makes_them(benchmark, monkeypatch, tmp_path, given, told):
    arguments = ["rebuild.py", "s", "--reference", str(tmp_path), "--out", "o"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--methods", "tsdf-64", *given])
    with pytest.raises(SystemExit, match=told):
        benchmark("rebuild").main()


def test_rows_of_two_refiners_share_a_file(benchmark, monkeypatch, tmp_path, capsys):
    shards = write_sphere_shards(tmp_path / "shards", num_samples=1)
    [uid] = ShardSet(shards, "samples").uids
    (tmp_path / f"{uid}.glb").touch()
    rebuild, out = benchmark("rebuild"), tmp_path / "rows.jsonl"
    figures = {"f_score_0.01": 0.0}
    old = {"set": "shards", "uid": uid, "method": "refined-96", "figures": figures}
    out.write_text(json.dumps(old) + "\n")  # as once, without its model

    def scored(shard_set, i, original, wanted, rebuilt, meshes):
        assert set(rebuilt) == {name for name in wanted if name != rebuild.FLOOR}
        return {name: {"f_score_0.01": float("one/" in name)} for name in wanted}

    for name in ("_inputs", "_rebuild", "_score"):
        monkeypatch.setattr(rebuild, name, scored if name == "_score" else lambda *_: {})
    monkeypatch.setattr(rebuild, "_in_child", lambda work, *arguments: work(*arguments))
    asked = ["rebuild.py", str(shards), "--reference", str(tmp_path), "--out", str(out)]
    asked += ["--methods", "classical-96", "refined-96", "--pipeline"]
    for folder, weights in (("one", "a"), ("two", "b"), ("two", "c"), ("two", "c")):
        pipeline = tmp_path / folder / "pipeline"
        pipeline.mkdir(parents=True, exist_ok=True)
        (pipeline / "weights").write_text(weights)  # two is trained anew: not the same model
        monkeypatch.setattr(sys, "argv", [*asked, str(pipeline)])
        rebuild.main()
    methods = [json.loads(line)["method"] for line in out.read_text().splitlines()]
    assert methods[:3] == ["refined-96", "floor", "classical-96"]
    ours = methods[3:]
    assert [name.partition("@")[0] for name in ours] == [
        f"refined-96 {folder}/pipeline" for folder in ("one", "two", "two")
    ]
    assert len(set(ours)) == 3
    printed = [line.split("|")[1:4:2] for line in capsys.readouterr().out.splitlines()[-6:]]
    scores = {name.strip(): score.strip() for name, score in printed}
    assert list(scores) == ["classical-96", "refined-96", *sorted(ours), "floor"]
    assert [name for name in scores if scores[name] == "1.000, 1.000"] == ours[:1]
