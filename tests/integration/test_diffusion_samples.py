"""Samples of a trained diffusion model as inputs of the refiner-decoder: in training and scored."""

import json
import shutil

import numpy as np
import pytest
import torch
from ball_road import NUM_SAMPLES, SMALL, encode_to, make_sample, train_stage

import eval as evaluation
from data_pipeline.command_line import compose
from data_pipeline.contract import UserError
from data_pipeline.loading.samples import decode_sample
from data_pipeline.shards.writer import ShardWriter
from modules.geometry.made_images import load_made_images
from modules.pipelines.diffusion_round_trip import DiffusionRoundTrip


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "shards"
    with ShardWriter(directory, "render", 4) as writer:
        for i in range(NUM_SAMPLES):
            colour = ("red", "green", "blue")[i % 3]
            writer.add(f"ball_{i}", make_sample(f"ball_{i}", colour, 0.3 + 0.03 * i))
        writer.finish({"kind": "samples", "config_hash": "0" * 16})
    return directory


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory):
    """A pipeline whose diffusion model has learned a little, and a refiner trained on its samples.

    For each of two assets there are samples at two strengths.
    """
    runs = tmp_path_factory.mktemp("runs")
    train_stage("autoencoder", 4, runs, "run", f"shards={shards}")
    encode_to(runs / "latents", shards, runs)
    train_stage("latent_diffusion", 150, runs, "run", f"latents={runs}/latents", *SMALL)
    train_stage(
        "refiner_decoder", 2, runs, "run", f"shards={shards}", "data.num_workers=0",
        "data.batch_size=1", "data.dataset.num_surface_points=64",
        "data.dataset.num_sdf_points=64", "data.dataset.prepare.made_share=1.0",
        f"callbacks.round_trips.pipelines=[{runs}/pipeline]",
        "callbacks.round_trips.strengths=[0.1,0.7]", "callbacks.round_trips.diffusion.steps=5",
        "callbacks.round_trips.count=2",
    )  # fmt: skip
    return runs


def test_one_setting_trains_the_refiner_on_samples_of_the_diffusion_model(runs):
    files = sorted((runs / "run_refiner_decoder/round_trips").iterdir())
    name = DiffusionRoundTrip(runs / "pipeline", torch.device("cpu"), steps=5).name
    assert [file.name for file in files] == [
        f"ball_{i}.diffused_{name}_{strength}.npz" for i in range(2) for strength in (0.1, 0.7)
    ]
    assert (runs / "pipeline/refiner_decoder").is_dir()
    true = [
        decode_sample(make_sample(f"ball_{i}", colour, 0.3 + 0.03 * i))["images"].numpy()
        for i, colour in enumerate(("red", "green"))
    ]
    made = [load_made_images(file)[0] for file in files]
    assert not np.array_equal(made[0], made[1])
    for k, images in enumerate(made):  # each shows its own asset
        error = [np.abs(images - other).mean() for other in true]
        assert error[k // 2] < 0.8 * error[1 - k // 2]


def test_rebuilds_of_samples_are_scored(runs, shards, tmp_path):
    def report(*more, checkpoint=runs / "pipeline"):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        arguments = [
            "task=rebuild", f"shards={shards}", f"out={out}", "count=2", "grid=32", "texture_px=64",
            "num_samples=2000", "num_views=1",
            "resolution_px=32", "device=cpu", *more,
        ]  # fmt: skip
        arguments += [] if checkpoint is None else [f"checkpoint={checkpoint}"]
        evaluation.main(compose("eval", arguments))
        return json.loads((out / "report.json").read_text())

    true, sampled = report(), report("strength=0.6")
    assert sampled["method"]["strength"] == 0.6
    assert "strength" not in true["method"]
    assert sampled["inputs"]["diffusion"] != sampled["inputs"]["checkpoint"]
    distances = [each["summary"]["chamfer_l1"]["median"] for each in (true, sampled)]
    assert distances[1] > 2.0 * distances[0]
    assert sampled["summary"]["seconds_generate"]["median"] > 0.0
    with pytest.raises(UserError, match="must lie between 0 and 1"):
        report("strength=1.5")
    with pytest.raises(UserError, match="needs checkpoint=DIR"):
        report("strength=0.5", checkpoint=None)
    shutil.copytree(runs / "pipeline/refiner_decoder", tmp_path / "bare/refiner_decoder")
    with pytest.raises(UserError, match="holds refiner_decoder, but no autoencoder"):
        report("strength=0.5", checkpoint=tmp_path / "bare")
