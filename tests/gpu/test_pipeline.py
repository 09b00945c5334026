"""On a CUDA device: every stage trains under every strategy, and inference agrees with the CPU."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sphere_shards import write_sphere_shards

from modules.pipelines.generation import TextTo25D

pytestmark = pytest.mark.gpu
REPOSITORY = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{arguments}:\n{result.stdout}\n{result.stderr}"
    return result.stdout


def train(folder: Path, stage: str, data: str, trainer: str, *more: str) -> None:
    run(
        "train.py", f"experiment=tiny/{stage}", data, f"trainer={trainer}", "logger=csv",
        f"paths.run_dir={folder}/{trainer}/{stage}", f"paths.pipeline_dir={folder}/{trainer}/model",
        "data.batch_size=2", "trainer.max_steps=3", "trainer.log_every_n_steps=1", *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path, Path]:
    """Samples, latents, and a pipeline whose three stages were trained on one GPU."""
    folder = tmp_path_factory.mktemp("gpu")
    shards = write_sphere_shards(folder / "shards", resolution_px=64)
    train(folder, "autoencoder", f"shards={shards}", "gpu")
    pipeline = folder / "gpu/model"
    run(
        "encode.py", f"shards={shards}", f"autoencoder={pipeline}/autoencoder",
        f"out={folder}/latents",
    )  # fmt: skip
    latents = f"latents={folder}/latents"
    steps = "trainer.max_steps=80"  # until a surface shows
    train(folder, "latent_diffusion", latents, "gpu", steps)
    points = ("data.dataset.num_surface_points=128", "data.dataset.num_sdf_points=256")
    train(folder, "refiner_decoder", f"shards={shards}", "gpu", *points)
    return shards, folder / "latents", pipeline


@pytest.mark.parametrize("trainer", ["ddp", "deepspeed"])
def test_the_diffusion_trains_and_exports_under(trainer, inputs, tmp_path):
    if trainer == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed: pip install -e .[deepspeed]")
    train(tmp_path, "latent_diffusion", f"latents={inputs[1]}", trainer)
    assert (tmp_path / trainer / "model/denoiser").is_dir()


def test_the_gpu_generates_what_the_cpu_generates(inputs):
    """In float32 (TF32 off): same seed, same images up to rounding over four steps."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    images = [
        TextTo25D.from_pretrained(inputs[2]).to(device)(["a ball"], [3], steps=4).cpu()
        for device in ("cpu", "cuda")
    ]
    assert (images[0] - images[1]).abs().max() < 1e-2


def test_a_prompt_becomes_a_mesh_on_the_gpu(inputs, tmp_path):
    run(
        "generate.py", "prompt=a ball", f"checkpoint={inputs[2]}", f"out={tmp_path}/ball.glb",
        f"views={tmp_path}/ball.png", "steps=4", "device=cuda",
    )  # fmt: skip
    assert (tmp_path / "ball.png").stat().st_size > 1000
