"""eval.py as a user meets it: figures, failures that are counted, wrong input, and going on."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from khronos import khronos_errors
from sphere_shards import write_sphere_shards
from tiny_autoencoder import TinyDC

from data_pipeline.loading.samples import decode_sample
from data_pipeline.shards.manifest import ShardSet
from modules.latents.patch_linear import start_patch_linear
from modules.latents.spec import fingerprint

REPOSITORY = Path(__file__).resolve().parents[2]
QUICK = ("num_samples=3000", "num_views=2", "resolution_px=48")


def evaluate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "eval.py", *arguments, *QUICK],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Meshes and references: one equal, one 3 % too large, one broken, one empty, two alone."""
    root = tmp_path_factory.mktemp("eval, with (odd) name")
    meshes, reference = root / "meshes", root / "reference"
    meshes.mkdir()
    reference.mkdir()
    ball = trimesh.creation.icosphere(3, 7.0)
    ball.apply_translation([100.0, 0.0, 3.0])  # references lie in a frame of their own
    for name in ("equal", "large", "broken", "empty", "reference_only"):
        ball.export(reference / f"{name}.glb")
    ball.export(meshes / "equal.ply")
    ball.export(meshes / "mesh_only.glb")
    (meshes / "broken.glb").write_bytes((reference / "equal.glb").read_bytes()[:200])
    (meshes / "empty.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nproperty float y\n"
        "property float z\nelement face 0\nproperty list uchar int vertex_indices\nend_header\n"
    )
    large = trimesh.creation.icosphere(3, 7.0 * 1.03)
    large.apply_translation([100.0, 0.0, 3.0])
    large.export(meshes / "large.glb")
    # PLY is Z up, GLB is Y up: the equal one is written as it lies in a Z-up world
    turned = trimesh.load_mesh(meshes / "equal.ply")
    turned.apply_transform(trimesh.transformations.rotation_matrix(np.pi / 2, [1, 0, 0]))
    turned.export(meshes / "equal.ply")
    return meshes, reference


def test_folders_are_scored_pair_by_pair_and_failures_are_counted(folders, tmp_path):
    meshes, reference = folders
    out = tmp_path / "out é 漢"
    arguments = ("task=meshes", f"meshes={meshes}", f"reference={reference}", f"out={out}")
    first = evaluate(*arguments)
    assert first.returncode == 0, first.stderr
    report = json.loads((out / "report.json").read_text())
    pairs = {pair["name"]: pair for pair in report["pairs"]}
    failed = {name for name, pair in pairs.items() if pair["failed"] is not None}
    assert failed == {"broken", "empty", "mesh_only", "reference_only"}
    assert (report["num_pairs"], report["num_failed"]) == (6, 4)
    assert pairs["equal"]["metrics"]["f_score_0.005"] == 1.0
    # 3 % of the radius is 1.5 % of the longest side
    assert pairs["large"]["metrics"]["chamfer_l1"] == pytest.approx(0.015, rel=0.05)
    assert report["summary"]["f_score_0.02"]["median"] == 0.0  # four of six failed
    assert report["summary"]["f_score_0.02"]["mean"] == pytest.approx(2 / 6, abs=0.01)
    assert report["floor"]["f_score_0.005"]["median"] == 1.0
    assert report["protocol"]["seed"] == 0
    assert "unit cube" in report["protocol"]["frame"]
    assert pairs["equal"]["truth_digest"] == pairs["large"]["truth_digest"]
    assert report["environment"]["python"]
    assert {pair["name"] for pair in report["pairs"][:4]} == failed  # worst first
    page = (out / "report.html").read_text()
    assert page.count("data:image/png") == 2
    assert all(name in page for name in pairs)
    assert "mesh_only" in (out / "report.md").read_text()
    drawn = {path: path.stat().st_mtime_ns for path in (out / "pictures").iterdir()}
    assert evaluate(*arguments).returncode == 0
    assert drawn == {path: path.stat().st_mtime_ns for path in (out / "pictures").iterdir()}
    assert not list(out.rglob("*.partial"))


def test_four_shards_give_the_figures_of_one_process(folders, tmp_path):
    meshes, reference = folders
    inputs = ("task=meshes", f"meshes={meshes}", f"reference={reference}")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert evaluate(*inputs, f"out={whole}").returncode == 0
    for i in (2, 0, 3):
        result = evaluate(*inputs, f"out={parts}", f"shard={i}/4")
        assert "are missing yet; the one that ends last writes" in result.stdout, result.stderr
        assert not (parts / "report.json").exists()
    assert evaluate(*inputs, f"out={parts}", "shard=1/4").returncode == 0
    one, four = (json.loads((out / "report.json").read_text()) for out in (whole, parts))
    assert one == four
    result = evaluate(*inputs, f"out={parts}", "shard=4/4")
    assert (result.returncode, "shard=4/4 is no share" in result.stderr) == (1, True)


def test_a_report_goes_to_wandb_with_pictures_and_meshes(folders, tmp_path):
    meshes, reference = folders
    out = tmp_path / "out"
    inputs = ("task=meshes", f"meshes={meshes}", f"reference={reference}", f"out={out}")
    result = evaluate(*inputs, "wandb.project=relief")
    assert result.returncode == 0, result.stderr
    [run] = (out / "wandb").glob("offline-run-*")
    [table] = run.rglob("*.table.json")
    content = json.loads(table.read_text())
    names = [row[0] for row in content["data"]]
    assert sorted(names) == sorted(
        ["equal", "large", "broken", "empty", "mesh_only", "reference_only"]
    )
    large = dict(zip(content["columns"], content["data"][names.index("large")], strict=True))
    assert large["chamfer_l1"] == pytest.approx(0.015, rel=0.05)
    assert (large["picture"], large["points"]) == ("Image", "Object3D")
    assert len([path for path in run.rglob("*") if path.suffix == ".glb"]) == 1  # W&B takes no PLY
    broken = dict(zip(content["columns"], content["data"][names.index("broken")], strict=True))
    assert broken["failed"]
    assert broken["points"] is None


def test_an_original_that_is_not_what_was_rendered_is_no_truth(tmp_path):
    shards = write_sphere_shards(tmp_path / "shards", num_samples=2, resolution_px=64)
    (tmp_path / "originals").mkdir()
    for i, radius in enumerate((0.5, 0.45)):  # the second was rendered at .5
        ball = trimesh.creation.icosphere(4, radius)
        ball.export(tmp_path / "originals" / f"sphere_{i}.glb")
    out = tmp_path / "out"
    result = evaluate(
        "task=rebuild", f"shards={shards}", f"reference={tmp_path}/originals", f"out={out}",
        "grid=48", "texture_px=64",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "sphere_1.glb is not what was rendered" in result.stderr
    report = json.loads((out / "report.json").read_text())
    truths = {pair["name"]: pair["truth"] for pair in report["pairs"]}
    assert truths == {"sphere_0": "mesh", "sphere_1": "samples"}
    assert report["summary"]["f_score_0.02"]["p10"] > 0.97


def test_samples_are_rebuilt_and_measured_without_any_training(tmp_path):
    shards = write_sphere_shards(tmp_path / "shards", num_samples=2, resolution_px=64)
    out = tmp_path / "out"
    result = evaluate("task=rebuild", f"shards={shards}", f"out={out}", "grid=48", "texture_px=128")
    assert result.returncode == 0, result.stderr
    report = json.loads((out / "report.json").read_text())
    assert (report["num_pairs"], report["num_failed"]) == (2, 0)
    assert report["pairs"][0]["truth"] == "samples"
    assert report["method"] == {"grid": 48, "texture_px": 128, "refine_steps": 0}
    assert report["inputs"] == {"shards": ShardSet(shards, "samples").sha256}
    assert report["summary"]["f_score_0.02"]["median"] > 0.98
    assert report["summary"]["input_view_psnr_masked"]["median"] > 20.0
    rebuilt = sorted((out / "rebuilt").glob("*.glb"))
    assert [path.stem for path in rebuilt] == ["sphere_0", "sphere_1"]
    assert khronos_errors(*rebuilt) == {path.name: [] for path in rebuilt}


def test_an_autoencoder_is_judged_by_what_it_loses_and_goes_on_where_it_stopped(tmp_path):
    shards = write_sphere_shards(tmp_path / "shards", num_samples=2, resolution_px=64)
    images = [decode_sample(ShardSet(shards, "samples").read(i))["images"] for i in range(2)]
    torch.manual_seed(0)
    autoencoder = TinyDC()
    start_patch_linear(autoencoder, torch.cat([each.flatten(0, 1) for each in images]))
    autoencoder.save_pretrained(tmp_path / "codec")
    out = tmp_path / "out"
    arguments = (
        "task=latents", f"shards={shards}", f"autoencoder={tmp_path / 'codec'}", f"out={out}",
        "grid=48", "texture_px=128",
    )  # fmt: skip
    result = evaluate(*arguments)
    assert result.returncode == 0, result.stderr
    report = json.loads((out / "report.json").read_text())
    median = {key: figures["median"] for key, figures in report["summary"].items()}
    assert (report["num_pairs"], report["num_failed"]) == (2, 0)
    assert report["inputs"]["autoencoder"] == fingerprint(autoencoder)
    assert 20.0 < median["decoded_psnr_inside"] < 60.0
    assert (
        0.0 < median["decoded_normal_deg_inside"] < median["decoded_normal_p95_deg_inside"] < 20.0
    )
    assert 0.0 < median["decoded_position_inside"] < 0.05
    assert 0.8 < median["decoded_mask_iou"] <= 1.0
    assert median["excess_normal_coord_deg"] > 0.0
    assert median["latent_std_normal"] > 0.0
    assert median["f_score_0.02"] <= median["true_images_f_score_0.02"] + 0.01
    assert median["true_images_f_score_0.02"] > 0.98
    page = (out / "report.html").read_text()
    assert page.count("data:image/png") == 2
    assert "2 samples through an autoencoder" in page
    assert "| Decoded normals, inside (degrees) |" in (out / "report.md").read_text()
    drawn = {path: path.stat().st_mtime_ns for path in (out / "pictures").iterdir()}
    assert evaluate(*arguments).returncode == 0
    assert drawn == {path: path.stat().st_mtime_ns for path in (out / "pictures").iterdir()}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["task=other", "out=x"], "task=other"),
        (["task=meshes", "out=x"], "meshes=DIR"),
        (["task=rebuild", "out=x"], "shards=DIR"),
        (["task=meshes", "meshes=/no/such", "reference=/no/such", "out=x"], "/no/such"),
        (["task=rebuild", "shards=/no/such", "out=x"], "/no/such"),
        (["task=meshes", "meshes=a", "reference=b", "out=x", "lpips_weights=/no/w"], "/no/w"),
        (["task=latents", "shards=/no/such", "out=x"], "autoencoder=DIR"),
        (["task=rebuild", "shards=/no/such", "out=x", "grid=-3"], "grid=-3"),
    ],
)
def test_wrong_input_is_told_in_one_line(arguments, said):
    result = evaluate(*arguments)
    assert result.returncode == 1
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


def test_folders_without_a_common_name_are_refused_before_any_work(tmp_path):
    for folder, name in (("a", "one"), ("b", "two")):
        (tmp_path / folder).mkdir()
        trimesh.creation.box().export(tmp_path / folder / f"{name}.glb")
    result = evaluate(
        "task=meshes", f"meshes={tmp_path}/a", f"reference={tmp_path}/b", f"out={tmp_path}/out"
    )
    assert result.returncode == 1
    assert "one" in result.stderr
    assert "two" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_third_report_is_wrong_usage():
    result = subprocess.run(
        [sys.executable, "eval.py", "compare", "a.json", "b.json", "c (3).json"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr == "error: compare takes two reports, c (3).json is a third\n"
