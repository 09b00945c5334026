"""What Lightning and our LatentDiffusionSystem add to the seconds of a bare PyTorch loop."""

import json
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import nn

from data_pipeline.command_line import compose
from data_pipeline.contract import MODALITIES
from modules.latents.spec import LatentSpec
from modules.losses.flow import (
    add_noise,
    mean_over_noisy,
    mean_square,
    to_velocity,
    velocity_target,
)

CAPTIONS = ["a red chair", "a blue table", "a green lamp", "a white shelf"]
WORDS = ["<pad>", "<unk>", *dict.fromkeys(" ".join(CAPTIONS).split())]
ROUNDS, WARMUP = 3, 2


def framework_overhead(device: str, steps: int, grid: int = 2) -> dict[str, Any]:
    """Train tiny/latent_diffusion in turn under Lightning and by a bare loop.

    Both train the same networks on the same batches with the same losses, clipping, optimizer and
    schedule. A round of one follows a round of the other, so that a machine's moods hit both; on a
    CPU the seconds are those of the process, which other programs do not change.

    Args:
        device: to train on.
        steps: timed in each round, behind two that are not.
        grid: packed cells along a view's side.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        config = _configuration(Path(folder), device, steps, grid)
        system = instantiate(config.system)
        system.setup("fit")
        batch = _batch(system.spec, device)
        rounds = [
            (_lightning(config, system, batch), _bare(config, system, batch, steps))
            for _ in range(ROUNDS)
        ]
    framework, bare = (statistics.median(times) for times in zip(*rounds, strict=True))
    return {
        "seconds": framework,
        "bare_s": bare,
        "overhead": statistics.median(a / b for a, b in rounds) - 1.0,
        "added_ms": 1000.0 * (framework - bare),
        "rounds": rounds,
    }


def _configuration(folder: Path, device: str, steps: int, grid: int) -> Any:
    trainer = "gpu" if device.startswith("cuda") else "cpu"
    config = compose(
        "train",
        [
            "experiment=tiny/latent_diffusion", f"trainer={trainer}", f"latents={folder}",
            "trainer.precision=32-true", f"trainer.max_steps={WARMUP + steps}",
        ],
    )  # fmt: skip
    channels = config.denoiser.in_channels
    spec = LatentSpec(
        packing=8, mean=[[0.0] * channels] * 3, std=[[1.0] * channels] * 3, origin="a benchmark",
        autoencoder="none", num_views=config.denoiser.num_views, grid=grid,
    )  # fmt: skip
    manifest = {"kind": "latents", "latent_spec": spec.to_json(), "vocabulary": WORDS}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return config


def _batch(spec: LatentSpec, device: str) -> dict[str, Any]:
    shape = (len(CAPTIONS), len(MODALITIES), spec.num_views, spec.channels, spec.grid, spec.grid)
    return {"latents": torch.randn(shape, device=device), "caption": CAPTIONS}


class _Batches(torch.utils.data.IterableDataset):
    def __init__(self, batch: dict[str, Any]) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            yield self.batch


def _lightning(config: Any, system: Any, batch: dict[str, Any]) -> float:
    """Return the mean seconds of a step in a run of Lightning's trainer."""
    from lightning import Callback

    clock = _Clock(str(batch["latents"].device))

    class Steps(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            clock.tick()

    trainer = instantiate(
        config.trainer,
        callbacks=[Steps()],
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        limit_val_batches=0,
    )
    trainer.fit(system, torch.utils.data.DataLoader(_Batches(batch), batch_size=None))
    return clock.mean()


def _bare(config: Any, system: Any, batch: dict[str, Any], steps: int) -> float:
    """Return the mean seconds of a step in a plain loop over the system's own networks."""
    device = batch["latents"].device
    clock = _Clock(str(device))
    networks = nn.ModuleList([system.denoiser, system.text_encoder]).to(device)
    weights = system.weights.to(device)
    optimizer = system.build_optimizer(networks.parameters())
    scheduler = system.build_scheduler(optimizer)
    generator = torch.Generator(device).manual_seed(0)
    drawn = {"device": device, "generator": generator}
    latents = batch["latents"]
    for _ in range(WARMUP + steps):
        keep = torch.rand(len(latents), **drawn) >= system.text_dropout
        texts = [c if k else "" for c, k in zip(batch["caption"], keep.tolist(), strict=True)]
        words = system.vocabulary.encode(texts, system.text_encoder.length).to(device)
        t = system.mix.sample(len(latents), **drawn)
        noise = torch.randn(latents.shape, **drawn)
        noisy = add_noise(latents, noise, t)
        output = system.denoiser(noisy, t, system.text_encoder(words))
        velocity = to_velocity(output, noisy, t, system.prediction, system.min_t)
        target = velocity_target(latents, noisy, noise, t, system.prediction, system.min_t)
        losses = mean_over_noisy(mean_square(velocity - target), t)
        loss = (losses * weights).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(networks.parameters(), config.trainer.gradient_clip_val)
        optimizer.step()
        scheduler.step()
        clock.tick()
    return clock.mean()


class _Clock:
    """Takes the mean time between ticks, without the first few."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device.startswith("cuda")
        self.ticks: list[float] = []

    def tick(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
        self.ticks.append(time.perf_counter() if self.on_gpu else time.process_time())

    def mean(self) -> float:
        first, last = self.ticks[WARMUP - 1], self.ticks[-1]
        return (last - first) / (len(self.ticks) - WARMUP)
