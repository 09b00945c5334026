"""The stages of training on a few balls, each by its command, for tests that join them."""

from sphere_shards import sphere_members

import encode
import train
from data_pipeline.command_line import compose

RESOLUTION_PX, NUM_SAMPLES = 32, 6
COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
SMALL = (
    "denoiser.in_channels=512",
    "denoiser.num_layers=1",
    "denoiser.num_single_layers=1",
    "denoiser.num_attention_heads=2",
)


def make_sample(uid: str, colour: str, radius: float) -> dict[str, bytes]:
    """Members of a sample: a ball of one colour."""
    captions = (f"a {colour} ball", f"{colour} sphere")
    category = "ball" if radius < 0.38 else "globe"  # so that no two name the same
    attributes = {"category": category, "colour": colour, "pattern": "plain", "pattern_colour": ""}
    return sphere_members(uid, COLOURS[colour], RESOLUTION_PX, radius, captions, attributes)


def train_stage(stage, steps, runs, name="run", *overrides):
    arguments = [
        f"experiment=tiny/{stage}",
        f"trainer.max_steps={steps}",
        "trainer.log_every_n_steps=1",
        f"paths.run_dir={runs}/{name}_{stage}",
        f"paths.pipeline_dir={runs}/pipeline",
        "data.batch_size=4",
        "~logger.wandb",
        "+trainer.enable_progress_bar=false",
        *overrides,
    ]
    assert train.main(compose("train", arguments)) is None
    return runs / f"{name}_{stage}"


def encode_arguments(out, shards, runs):
    return [
        f"shards={shards}", f"autoencoder={runs}/pipeline/autoencoder", f"out={out}", "packing=4",
        "batch_size=1",
    ]  # fmt: skip


def encode_to(out, shards, runs):
    encode.main(compose("encode", encode_arguments(out, shards, runs)))


def read_metrics(run_dir):
    lines = next(run_dir.glob("csv/*/metrics.csv")).read_text().splitlines()
    header = lines[0].split(",")
    return [dict(zip(header, line.split(","), strict=True)) for line in lines[1:]]
