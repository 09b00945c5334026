"""Images against prompts and against a set of others, as eval.py reports them."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from tiny_networks import NUM_INCEPTION_FEATURES, save_clip, save_dinov2, save_inception

from data_pipeline.command_line import compose
from data_pipeline.contract import UserError
from modules.metrics.features import InceptionNetwork
from modules.reporting.comparison import compare_files
from modules.reporting.folder_cases import asset_digest
from modules.reporting.image_folder import ImageFolder, ViewOptions, file_name, read_image

MAIN = runpy.run_path(str(Path(__file__).resolve().parents[2] / "eval.py"))["main"]


def evaluate(out: Path, *arguments: str) -> dict:
    quick = ("task=meshes", "num_views=3", "resolution_px=32", "kid_subset_size=4", f"out={out}")
    MAIN(compose("eval", [*quick, *arguments]))
    return json.loads((out / "report.json").read_text())


@pytest.fixture(autouse=True)
def small_inception(monkeypatch):
    monkeypatch.setattr(InceptionNetwork, "num_features", NUM_INCEPTION_FEATURES)


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("networks")
    return {
        "clip": save_clip(root / "clip, with (odd) name"),
        "dinov2": save_dinov2(root / "dinov2"),
        "inception": save_inception(root / "inception.pt"),
    }


@pytest.fixture(scope="module")
def meshes(tmp_path_factory) -> Path:
    """Three meshes that can be shown and two that cannot."""
    folder = tmp_path_factory.mktemp("meshes")
    for name, mesh in {
        "ball": trimesh.creation.icosphere(2, 7.0),
        "box": trimesh.creation.box((1.0, 2.0, 3.0)),
        "café v1.5": trimesh.creation.cylinder(1.0, 2.0),
    }.items():
        mesh.apply_translation([40.0, 0.0, 0.0])
        mesh.export(folder / f"{name}.glb")
    (folder / "broken.glb").write_bytes(b"glTF")
    (folder / "empty.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nproperty float y\n"
        "property float z\nelement face 0\nproperty list uchar int vertex_indices\nend_header\n"
    )
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.csv"
    rows = "ball.glb,a ball\nsome/folder/box.ply,a box\ncafé v1.5,a cup\nbroken.glb,a thing\n"
    path.write_text(f"file,caption\n{rows}empty,a void\nabsent.glb,a ball\n", "utf-8")
    return path


def test_meshes_are_scored_against_prompts_and_what_has_no_partner_is_named(
    meshes, prompts, networks, tmp_path
):
    out = tmp_path / "out"
    given = (f"meshes={meshes}", f"prompts={prompts}", f"clip={networks['clip']}")
    report = evaluate(out, *given)
    pairs = {pair["name"]: pair for pair in report["pairs"]}
    failed = {name for name, pair in pairs.items() if pair["failed"] is not None}
    assert failed == {"broken", "absent", "empty"}
    assert (report["num_pairs"], report["num_failed"]) == (6, 3)
    assert "no file" in pairs["absent"]["failed"]
    assert pairs["café v1.5"]["prompt"] == "a cup"
    scores = [pair["metrics"]["clip_score"] for pair in report["pairs"]]
    assert report["summary"]["clip_score"]["mean"] == pytest.approx(np.mean(scores))
    assert sorted(report["summary"]) == ["clip_score", "r_precision"]
    assert sum(score == 0.0 for score in scores) >= 3  # failures count
    assert report["about"]["candidates"] == "5 distinct prompts"
    assert report["sets"] is None
    assert "cameras" in report["protocol"]
    assert report["protocol"]["background"] == "white"
    page = (out / "report.html").read_text("utf-8")
    assert page.count("data:image/png") == 3
    assert "a cup" in page
    assert "R-precision" in (out / "report.md").read_text("utf-8")
    views = {path: path.stat().st_mtime_ns for path in (out / "views").iterdir()}
    assert len(views) == 9
    assert evaluate(out, *given)["pairs"] == report["pairs"]
    assert views == {path: path.stat().st_mtime_ns for path in (out / "views").iterdir()}
    same = compare_files(out / "report.json", out / "report.json", resamples=1000, seed=0)
    rows = [line for line in same.splitlines() if line.endswith("| 6 |")]  # failed pairs, too
    assert [row.split("|")[1].strip() for row in rows] == ["CLIP score", "R-precision"]
    assert "left out" not in same


def test_images_beside_a_mesh_are_left_out_and_told(meshes, tmp_path):
    for i in range(2):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{i}.png")
    options = ViewOptions(num_views=2, resolution_px=16)
    assert ImageFolder(tmp_path, options, tmp_path / "views").notes == []
    (tmp_path / "stray.glb").write_bytes((meshes / "box.glb").read_bytes())
    folder = ImageFolder(tmp_path, options, tmp_path / "views")
    assert list(folder.files) == ["stray"]
    assert "2 image files beside the meshes" in folder.notes[0]


def test_a_mesh_without_prompt_is_a_failure(meshes, networks, tmp_path):
    (tmp_path / "some.jsonl").write_text('{"file": "ball", "caption": "a ball"}\n')
    given = (f"meshes={meshes}", f"prompts={tmp_path}/some.jsonl", f"clip={networks['clip']}")
    report = evaluate(tmp_path / "out", *given)
    assert report["num_failed"] == 4
    (ball,) = (pair for pair in report["pairs"] if pair["failed"] is None)
    assert ball["metrics"]["r_precision"] == 1.0  # the only candidate
    assert report["summary"]["r_precision"]["mean"] == 0.2


def test_a_set_against_itself_is_at_nought_and_warnings_are_told(meshes, networks, tmp_path):
    given = [f"{key}={path}" for key, path in networks.items()]
    report = evaluate(tmp_path, f"meshes={meshes}", f"reference_images={meshes}", *given)
    sets = report["sets"]
    assert (sets["num_images"], sets["num_reference_images"]) == (9, 9)
    figures = sets["figures"]
    assert sorted(figures) == ["cmmd", "fd_dinov2", "fid", "kid", "kid_std"]
    for key in ("fid", "cmmd", "fd_dinov2"):
        assert figures[key] == pytest.approx(0.0, abs=1e-5)
    notes = " ".join(report["notes"])
    assert "fid: 9 images for 24 features" in notes
    assert "cmmd: published ones are of CLIP ViT-L/14 at 336 px" in notes
    assert "such as broken" in notes
    assert report["summary"] == {}
    assert "9 images against 9" in (tmp_path / "report.md").read_text("utf-8")
    assert "FD-DINOv2" in (tmp_path / "report.html").read_text("utf-8")


def test_images_are_compared_with_meshes_and_only_by_the_networks_named(meshes, networks, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(6):
        noise = np.random.default_rng(i).integers(0, 255, (24 + i, 30, 3), np.uint8)
        Image.fromarray(noise).save(images / f"{i}.png")
    given = (f"meshes={images}", f"reference_images={meshes}", f"inception={networks['inception']}")
    report = evaluate(tmp_path / "out", *given, "kid_subset_size=null")
    assert list(report["sets"]["figures"]) == ["fid"]
    assert report["sets"]["figures"]["fid"] > 0.01
    assert report["sets"]["num_images"] == 6
    assert "not named: cmmd, fd_dinov2." in " ".join(report["notes"])
    assert "kid is left out, as kid_subset_size=null" in " ".join(report["notes"])
    assert report["protocol"]["inception"] != str(networks["inception"])  # known by its content
    assert report["protocol"]["clip"] is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "prompts=FILE"),
        (["prompts=P"], "needs clip="),
        (["reference_images=M"], "needs a network"),
        (["reference_images=M", "inception=I", "kid_subset_size=99"], "kid_subset_size=7"),
        (["prompts=P", "clip=C", "reference=M"], "reference_images"),
        (["prompts=P", "clip=/no/such"], "/no/such"),
        (["prompts=P", "clip=C", "count=2"], "count="),
        (["prompts=P", "clip=C", "seed=-1"], "seed=-1"),
        (["prompts=P", "clip=C", "resolution_px=4096000"], "resolution_px=4096000"),
        (["prompts=OTHER", "clip=C"], "no row of prompts"),
        (["prompts=TWICE", "clip=C"], "two rows"),
        (["prompts=BARE", "clip=C"], "no row of prompts has a caption"),
    ],
)
def test_what_is_missing_is_told(given, said, meshes, prompts, networks, tmp_path):
    (tmp_path / "other.csv").write_text("file,caption\nx.glb,a chair\n")
    (tmp_path / "bare.csv").write_text("file,prompt\nball.glb,a\n")
    (tmp_path / "twice.csv").write_text("file,caption\nball.glb,a\nball.obj,b\n")
    paths = {
        "P": prompts, "M": meshes, "C": networks["clip"], "I": networks["inception"],
        "OTHER": tmp_path / "other.csv", "TWICE": tmp_path / "twice.csv",
        "BARE": tmp_path / "bare.csv",
    }  # fmt: skip
    pairs = (text.split("=") for text in given)
    with pytest.raises(UserError, match=said):
        evaluate(
            tmp_path / "out", f"meshes={meshes}", *(f"{k}={paths.get(v, v)}" for k, v in pairs)
        )
    assert not (tmp_path / "out").exists()


def test_views_show_the_whole_mesh_on_white_and_transparent_images_too(meshes, tmp_path):
    folder = ImageFolder(meshes, ViewOptions(num_views=2, resolution_px=48), tmp_path / "views")
    for view in folder.images("box"):
        edge = np.concatenate([view[0], view[-1], view[:, 0], view[:, -1]])
        assert (edge == 255).all()
        assert (view < 250).any()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "clear.png") == 255).all()
    (tmp_path / "torn.png").write_bytes((tmp_path / "clear.png").read_bytes()[:30])
    with pytest.raises(UserError, match=r"torn\.png"):
        read_image(tmp_path / "torn.png")


@pytest.mark.parametrize(
    ("text", "name"),
    [("a/b/c.glb", "c"), ("v1.5 chair", "v1.5 chair"), ("cafe\u0301.OBJ", "café"), ("x.png", "x")],
)
def test_a_list_means_a_file_by_its_name_alone(text, name):
    assert file_name(text) == name


def test_a_network_of_another_kind_is_refused(meshes, networks, tmp_path):
    with pytest.raises(UserError, match="it is a clip, not a dinov2"):
        evaluate(
            tmp_path, f"meshes={meshes}", f"reference_images={meshes}",
            f"dinov2={networks['clip']}",
        )  # fmt: skip


def test_a_mesh_is_known_by_its_materials_and_textures_too(tmp_path):
    (tmp_path / "m.obj").write_text("mtllib m.mtl\nv 0 0 0\n")
    (tmp_path / "m.mtl").write_text("newmtl a\nmap_Kd -o 0 0 0 paint.png\n")
    (tmp_path / "paint.png").write_bytes(b"red")
    before = asset_digest(tmp_path / "m.obj")
    assert asset_digest(tmp_path / "m.obj") == before
    (tmp_path / "paint.png").write_bytes(b"blue")
    assert asset_digest(tmp_path / "m.obj") != before
