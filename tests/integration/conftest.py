"""What several tests of the joined stages share: built once."""

import pytest
from ball_road import COLOURS, NUM_SAMPLES, SMALL, encode_to, make_sample, train_stage

from data_pipeline.shards.writer import ShardWriter


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Six balls in two shards."""
    directory = tmp_path_factory.mktemp("data") / "shards"
    with ShardWriter(directory, "render", 4) as writer:
        for i in range(NUM_SAMPLES):
            uid, colour = f"ball_{i}", list(COLOURS)[i % 3]
            writer.add(uid, make_sample(uid, colour, 0.3 + 0.03 * i))
        writer.finish({"kind": "samples", "config_hash": "0" * 16})
    return directory


@pytest.fixture(scope="session")
def runs(shards, tmp_path_factory):
    """The road: autoencoder, cache, denoiser, all exported into `pipeline`."""
    runs = tmp_path_factory.mktemp("runs")
    train_stage("autoencoder", 4, runs, "run", f"shards={shards}")
    encode_to(runs / "latents", shards, runs)
    train_stage("latent_diffusion", 6, runs, "run", f"latents={runs}/latents", *SMALL)
    return runs
