"""The exported pipeline: what it generates, textures and is measured by, and with which decoder."""

import json
import shutil

import numpy as np
import pytest
import torch
import trimesh
from ball_road import (
    NUM_SAMPLES,
    RESOLUTION_PX,
    encode_to,
    train_stage,
)

import eval as evaluation
import generate
import train
from data_pipeline.command_line import compose
from data_pipeline.contract import UserError
from modules.geometry.mesh import load_mesh
from modules.pipelines.generation import TextTo25D


def test_the_exported_pipeline_generates_and_textures(runs):
    pipeline = TextTo25D.from_pretrained(runs / "pipeline")
    images = pipeline(["a red ball", "a blue ball"], [0, 1], steps=2)
    assert images.shape == (2, 3, 6, 3, RESOLUTION_PX, RESOLUTION_PX)
    assert torch.isfinite(images).all()
    textured = pipeline(["a red ball"], [0], steps=2, geometry=images[:1])
    assert torch.equal(textured[:, 1:], images[:1, 1:])


def test_a_given_mesh_is_textured_in_its_own_frame(runs, tmp_path, capsys):
    body = trimesh.creation.icosphere(subdivisions=3, radius=3.0)
    body.apply_translation([5000.0, 20.0, -7.0])
    body.export(tmp_path / "a ball, bare.obj")
    arguments = [
        f"mesh={tmp_path}/a ball, bare.obj", "prompt=a red ball", f"checkpoint={runs}/pipeline",
        "steps=2", "texture_px=64",
    ]  # fmt: skip
    generate.main(compose("generate", [*arguments, f"out={tmp_path}/ball.glb"]))
    given, textured = (load_mesh(tmp_path / n) for n in ("a ball, bare.obj", "ball.glb"))
    corners = textured.vertices[textured.faces]
    np.testing.assert_allclose(corners, given.vertices[given.faces], atol=1e-3)
    assert len(textured.textures) == 1
    assert textured.textures[0].shape == (64, 64, 3)
    assert "watertight" in capsys.readouterr().out
    for wrong, told in (
        ([f"mesh={tmp_path}/none.glb", f"out={tmp_path}/b.glb"], "no mesh file at"),
        ([f"mesh={tmp_path}/b.glb", f"out={tmp_path}/b.glb"], "is what is read"),
        (["refine_steps=2", f"out={tmp_path}/b.glb"], "keeps its shape"),
    ):
        with pytest.raises(UserError, match=told):
            generate.main(compose("generate", [*arguments, *wrong]))
    with pytest.raises(UserError, match="mesh=FILE needs prompt"):
        generate.main(compose("generate", ["mesh=a.obj", "sample=b", f"out={tmp_path}/b.glb"]))


def test_held_back_captions_are_made_and_what_they_show_is_measured(runs, shards, tmp_path):
    pipeline, out = tmp_path / "pipeline", tmp_path / "out"
    shutil.copytree(runs / "pipeline", pipeline)
    train_stage(
        "refiner_decoder", 1, runs, "run", f"shards={shards}", f"paths.pipeline_dir={pipeline}",
        "data.dataset.num_surface_points=128", "data.dataset.num_sdf_points=256",
    )  # fmt: skip
    arguments = [
        "task=text_to_3d", f"shards={shards}", f"checkpoint={pipeline}", f"out={out}", "num_val=1",
        "steps=2", "grid=32", "texture_px=64", "classifier_steps=2",
    ]  # fmt: skip
    evaluation.main(compose("eval", arguments))
    report = json.loads((out / "report.json").read_text())
    [pair] = report["pairs"]
    assert report["method"]["steps"] == 2
    assert "was trained on these shards" in report["notes"][0]  # as its export says
    assert {"image_colour_right", "seconds_generate"} <= pair["metrics"].keys()
    assert pair["metrics"]["excess_reprojection_px"] > 0.0  # six steps of training place no coord
    assert (out / pair["picture"]).is_file()
    assert pair["prompt"] == f"a {pair['asked']['colour']} ball"
    # one pattern in all, and pure colours: the instrument cannot err on them
    instrument = report["composition"]["instrument"]
    assert (instrument["num_training"], instrument["num_held_back"]) == (5, 1)
    assert (instrument["true"]["pattern"], instrument["true"]["colour"]) == (1.0, 1.0)
    assert sum(report["composition"]["confusion"]["colour"][pair["asked"]["colour"]].values()) == 1
    if pair["failed"] is None:  # six steps of training make no ball: a clear failure will do
        assert pair["metrics"]["pattern_right"] == 1.0
        assert pair["nearest"] in {f"ball_{i}" for i in range(NUM_SAMPLES)}
        assert (out / "generated" / f"{pair['name']}.glb").is_file()
    assert pair["prompt"] in (out / "report.html").read_text()


def test_a_pipeline_takes_its_decoder_tuned_and_its_latents_stay(runs, shards, tmp_path, capsys):
    original = runs / "pipeline" / "autoencoder"
    tuned = tmp_path / "pipeline"
    arguments = [
        "experiment=taef2/autoencoder", f"shards={shards}", f"image_autoencoder.source={original}",
        f"paths.run_dir={tmp_path}/run", f"paths.pipeline_dir={tuned}", "trainer.max_steps=2",
        "system.images_per_step=4", "logger=csv", "+trainer.enable_progress_bar=false",
    ]  # fmt: skip
    assert train.main(compose("train", arguments)) is None
    (tuned / "denoiser").symlink_to(runs / "pipeline" / "denoiser")
    before, after = (
        TextTo25D.from_pretrained(folder)(["a ball"], [1], steps=2)
        for folder in (runs / "pipeline", tuned)
    )
    assert 0 < (before - after).abs().mean() < 0.1
    encode_to(runs / "latents", shards, tmp_path)
    assert "encoded already" in capsys.readouterr().out


def test_a_pipeline_with_another_autoencoder_is_refused(runs, shards, tmp_path):
    train_stage("autoencoder", 1, tmp_path, "other", f"shards={shards}")
    (tmp_path / "pipeline" / "denoiser").symlink_to(runs / "pipeline" / "denoiser")
    with pytest.raises(UserError, match="were made by encoder"):
        TextTo25D.from_pretrained(tmp_path / "pipeline")
