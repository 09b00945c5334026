"""The trainings of benchmarks/adaptation.py: of the stand-in, and of the arms."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adaptation_arms import (
    BATCHES,
    MIXES,
    SIZES,
    TEXT_DROPOUT,
    Data,
    SingleViews,
    build_arm,
    build_text_encoder,
    count_trained,
    embed_captions,
    save_stand_in,
)
from adaptation_steps import Trainer, generator, graphed
from torch import Tensor

from data_pipeline.contract import MODALITIES
from modules.losses.flow import add_noise, mean_over_noisy, mean_square, velocity_target
from modules.networks.denoiser import JointDenoiser

NUM_LEVELS = 5
PRETRAINING_RATE = 1e-3

Report = Callable[[dict[str, Any]], None]


def keep_captions(which: Tensor, null: int, drawn: dict[str, Any]) -> Tensor:
    """Return the rows of the captions of assets, some replaced by that of no caption."""
    dropped = torch.rand(len(which), **drawn) < TEXT_DROPOUT
    return which.masked_fill(dropped, null)


def flow_loss(output: Tensor, clean: Tensor, noisy: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return the velocity loss per sample and modality."""
    return mean_square(output - velocity_target(clean, noisy, noise, t, "velocity", 0.0))


def pretrain(
    data: Data,
    size: str,
    folder: Path,
    seconds: float,
    max_steps: int,
    graphs: bool,
    report: Report,
) -> None:
    """Train the stand-in on single rgb views of all assets that are not held back; write it.

    The learning rate falls in the last third of the time.
    """
    start, device = time.monotonic(), data.rgb.device
    torch.manual_seed(0)
    encoder = build_text_encoder(data)
    denoiser = JointDenoiser.from_scratch(num_views=1, **SIZES[size])
    model = SingleViews(denoiser.backbone).to(device)
    trainer = Trainer([*model.parameters(), *encoder.parameters()], PRETRAINING_RATE)
    assert encoder.vocabulary is not None
    words = encoder.vocabulary.encode([*data.captions, ""], encoder.length).to(device)
    num_assets, num_views = data.rgb.shape[:2]
    batch_size, mix = 16 * BATCHES[size], MIXES["mixed"].at(data.rgb[0, 0, 0].numel())

    def draw(step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        drawn = {"device": device, "generator": generator(device, 0, step)}
        which = torch.randint(data.num_validation, num_assets, (batch_size,), **drawn)
        view = torch.randint(num_views, (batch_size,), **drawn)
        clean = data.rgb[which, view][:, None, None]
        times = torch.sigmoid(mix.mean + mix.std * torch.randn(batch_size, 1, **drawn))
        text = encoder(words[keep_captions(which, num_assets, drawn)])
        return clean, torch.randn(clean.shape, **drawn), times, text

    if graphs:
        clean, noise, times, text = draw(0)
        graphs = graphed(model, (clean, times, text.detach().requires_grad_()))
    share, loss = 0.0, torch.zeros(())
    while share < 1.0 and trainer.step < max_steps:
        clean, noise, times, text = draw(trainer.step)
        noisy = add_noise(clean, noise, times)
        loss = flow_loss(model(noisy, times, text), clean, noisy, noise, times).mean()
        trainer.update(loss, min(1.0, 3.0 * (1.0 - share)))
        share = max((time.monotonic() - start) / seconds, trainer.step / max_steps)
        if trainer.step % 100 == 1:
            report({"round": "pretraining", "step": trainer.step, "train_loss": loss.item()})
    trainer.swap()
    model.eval()
    with torch.no_grad():
        held_back = torch.arange(data.num_validation, device=device).repeat(num_views)
        view = torch.arange(num_views, device=device).repeat_interleave(data.num_validation)
        clean, text = data.rgb[held_back, view][:, None, None], encoder(words[held_back])
        losses = []
        for i, level in enumerate(mix.levels(NUM_LEVELS).tolist()):
            times = torch.full((len(clean), 1), level, device=device)
            noise = torch.randn(clean.shape, device=device, generator=generator(device, 1, i))
            noisy = add_noise(clean, noise, times)
            losses.append(flow_loss(model(noisy, times, text), clean, noisy, noise, times).mean())
    save_stand_in(folder, denoiser.backbone, encoder)
    report({
        "round": "pretraining", "step": trainer.step, "train_loss": loss.item(), "graphs": graphs,
        "seconds": time.monotonic() - start, "validation_loss": torch.stack(losses).mean().item(),
        "views": (num_assets - data.num_validation) * num_views,
        "parameters": sum(p.numel() for p in denoiser.backbone.parameters()),
    })  # fmt: skip


def evaluation_levels(data: Data) -> dict[str, Tensor]:
    """Return noise levels (levels m) for each way to use the model; 0 is a clean modality."""
    levels = MIXES["mixed"].at(data.rgb[0, :, 0].numel()).levels(NUM_LEVELS)
    clean = torch.zeros_like(levels)
    return {
        "joint": torch.stack([levels, levels, levels], dim=1),
        "texture": torch.stack([levels, clean, clean], dim=1),
        "geometry": torch.stack([clean, levels, levels], dim=1),
        "independent": torch.stack([levels, levels.roll(1), levels.roll(3)], dim=1),
    }


@torch.no_grad()
def evaluate(denoiser: JointDenoiser, data: Data, text: Tensor) -> dict[str, dict[str, float]]:
    """Return the loss on the assets held back by use and modality; noise is always the same."""
    device, which = data.rgb.device, torch.arange(data.num_validation, device=data.rgb.device)
    clean, losses = data.assets(which), {}
    for use, levels in evaluation_levels(data).items():
        sums = torch.zeros(len(MODALITIES), device=device)
        for i, level in enumerate(levels.to(device)):
            times = level.expand(len(which), -1)
            noise = torch.randn(clean.shape, device=device, generator=generator(device, 1, i))
            noisy = add_noise(clean, noise, times)
            sums += flow_loss(denoiser(noisy, times, text[which]), clean, noisy, noise, times).mean(
                dim=0
            )
        losses[use] = {
            name: sums[m].item() / NUM_LEVELS
            for m, name in enumerate(MODALITIES)
            if levels[:, m].any()
        }
    return losses


def evaluation_steps() -> Iterator[int]:
    """Yield the steps at which every arm is evaluated: the denser the earlier."""
    yield from (0, 25, 50, 100, 150, 200, 300, 400, 600, 800)
    step = 1000
    while True:
        yield step
        step += 250


class ArmTraining:
    """An arm in training, its passes as CUDA graphs where that is possible.

    Args:
        job: `arm`, `lr`, `seed`, `rule` of the text's timestep, and `mix` of timesteps.
        data: to train on.
        size: of the model.
        folder: of the stand-in.
        graphs: whether to try CUDA graphs.
    """

    def __init__(
        self, job: dict[str, Any], data: Data, size: str, folder: Path, graphs: bool
    ) -> None:
        self.job, self.data, device = job, data, data.rgb.device
        self.text, self.batch_size = embed_captions(folder, data), BATCHES[size]
        self.mix = MIXES[job["mix"]].at(data.rgb[0, :, 0].numel())
        denoiser = build_arm(job["arm"], size, folder, job["seed"], job["rule"])
        self.denoiser = denoiser.to(device).train()
        trained = [p for p in self.denoiser.parameters() if p.requires_grad]
        self.trainer = Trainer(trained, job["lr"])
        _, noise, times, text = self._draw()
        self.graphs = graphs and graphed(self.denoiser, (noise, times, text))

    def _draw(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return clean latents, noise, noise levels and text: a function of seed and step."""
        data, device = self.data, self.data.rgb.device
        drawn = {
            "device": device,
            "generator": generator(device, 2, self.job["seed"], self.trainer.step),
        }
        last = data.num_validation + data.num_adaptation
        which = torch.randint(data.num_validation, last, (self.batch_size,), **drawn)
        clean = data.assets(which)
        times = self.mix.sample(self.batch_size, **drawn)
        text = self.text[keep_captions(which, len(self.text) - 1, drawn)]
        return clean, torch.randn(clean.shape, **drawn), times, text

    def step(self) -> None:
        """Make one step."""
        clean, noise, times, text = self._draw()
        noisy = add_noise(clean, noise, times)
        errors = flow_loss(self.denoiser(noisy, times, text), clean, noisy, noise, times)
        self.trainer.update(mean_over_noisy(errors, times).mean())

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Evaluate the averaged weights."""
        self.trainer.swap()
        self.denoiser.eval()
        losses = evaluate(self.denoiser, self.data, self.text)
        self.denoiser.train()
        self.trainer.swap()
        return losses


def adapt(training: ArmTraining, until: float, max_steps: int, report: Report) -> None:
    """Train an arm until a point in time, and report its losses as they come.

    Seconds are those of training alone, beside whatever else runs on the machine.
    """
    seconds, trainer = 0.0, training.trainer
    base = {**training.job, "graphs": training.graphs, "trained": count_trained(training.denoiser)}
    if time.time() > until:
        return
    for goal in evaluation_steps():
        start = time.monotonic()
        while trainer.step < min(goal, max_steps) and time.time() < until:
            training.step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds += time.monotonic() - start
        if trainer.step < goal and trainer.step < max_steps:
            return  # the time is over: what was evaluated stands
        report({**base, "step": trainer.step, "seconds": seconds, "loss": training.evaluate()})
        if trainer.step >= max_steps:
            return


def time_arms(
    trainings: dict[str, ArmTraining], seconds: float, max_steps: int
) -> dict[str, float]:
    """Return the median seconds of a step of each arm, measured by turns in this process alone."""
    until, figures = time.time() + seconds, {arm: [] for arm in trainings}
    for turn in range(max_steps + 3):
        for arm, training in trainings.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter()
            training.step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= 2:
                figures[arm].append(time.perf_counter() - start)
        if time.time() > until and turn >= 2:
            break
    return {arm: float(np.median(values)) for arm, values in figures.items() if values}
