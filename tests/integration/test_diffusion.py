"""Training of autoencoder and denoiser through train.py: figures, resume, export, refusals."""

import numpy as np
import pytest
import torch
from ball_road import SMALL, read_metrics, train_stage

from data_pipeline.contract import UserError
from modules.latents.autoencoder_files import load_autoencoder
from modules.latents.cache import read_cache
from modules.latents.spec import encoder_fingerprint


def test_training_logs_its_losses(runs):
    rows = read_metrics(runs / "run_latent_diffusion")
    for key in ("total", "rgb", "normal", "coord", "predict_zero_ratio"):
        values = [float(row[f"train/loss/{key}"]) for row in rows if row[f"train/loss/{key}"]]
        assert len(values) == 6
        assert np.isfinite(values).all()
    for key in ("total", "rgb", "normal", "coord", "predict_zero_ratio"):
        assert [row["step"] for row in rows if row[f"val/loss/{key}"]] == ["0", "5"]
    rows = read_metrics(runs / "run_autoencoder")
    keys = ("rgb/psnr_db", "normal/angle_deg", "coord/error", "coord/error_inside")
    for key in keys:
        assert [row["step"] for row in rows if row[f"val/{key}"]] == ["0", "3"]


@pytest.mark.parametrize("stage", ["autoencoder", "latent_diffusion"])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(stage, runs, shards, tmp_path):
    source = [f"shards={shards}"]
    if stage == "latent_diffusion":
        source = [f"latents={runs}/latents", *SMALL]
    # The schedule falls towards the planned end, so the first run plans the end of the whole.
    fixed = [*source, "system.scheduler.lr_lambda.total_steps=5"]
    whole = train_stage(stage, 5, tmp_path, "whole", *fixed)
    train_stage(stage, 3, tmp_path, "halves", *fixed)
    (tmp_path / f"halves_{stage}" / "finished").unlink()
    halves = train_stage(stage, 5, tmp_path, "halves", *fixed)
    states = [
        torch.load(run / "checkpoints" / "step-00000005.ckpt", weights_only=True)
        for run in (whole, halves)
    ]
    average = [
        next(v["average"] for k, v in state["callbacks"].items() if "WeightAverage" in k)
        for state in states
    ]
    for name, tensor in states[0]["state_dict"].items():
        torch.testing.assert_close(tensor, states[1]["state_dict"][name], rtol=0, atol=0)
    for name, tensor in average[0].items():
        torch.testing.assert_close(tensor, average[1][name], rtol=0, atol=0)


def test_the_export_is_safetensors_and_json_of_the_averaged_weights(runs):
    files = [path for path in (runs / "pipeline").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    checkpoint = next((runs / "run_autoencoder" / "checkpoints").glob("*.ckpt"))
    state = torch.load(checkpoint, weights_only=True)
    average = next(v["average"] for k, v in state["callbacks"].items() if "WeightAverage" in k)
    exported = load_autoencoder(runs / "pipeline" / "autoencoder").state_dict()
    for name, tensor in average.items():
        assert torch.equal(exported[name.removeprefix("autoencoder.")], tensor)
    cache = read_cache(runs / "latents")
    assert cache["inputs"]["autoencoder"] == encoder_fingerprint(
        load_autoencoder(runs / "pipeline" / "autoencoder")
    )


def test_a_denoiser_of_other_channels_is_refused_in_one_line(runs, tmp_path):
    small = [*SMALL, "denoiser.in_channels=16"]
    with pytest.raises(UserError, match="the denoiser takes 6 of 16"):
        train_stage("latent_diffusion", 1, tmp_path, "run", f"latents={runs}/latents", *small)


def test_a_folder_without_latents_is_refused_in_one_line(shards, tmp_path):
    with pytest.raises(UserError, match="latents"):
        train_stage("latent_diffusion", 1, tmp_path, "run", f"latents={shards}", *SMALL)


@pytest.mark.slow
def test_the_denoiser_beats_predict_zero_and_reads_its_captions(runs, tmp_path):
    options = [f"latents={runs}/latents", *SMALL, "trainer.log_every_n_steps=50"]
    options += ["data.hold_back=false"]  # six balls: by heart is all there is to learn
    last = read_metrics(train_stage("latent_diffusion", 400, tmp_path, "run", *options))[-1]
    assert float(last["val/loss/predict_zero_ratio"]) < 0.25
    assert float(last["val/loss/true_minus_shuffled"]) < 0.0
