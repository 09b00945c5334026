"""By how much a prediction moves when one condition is exchanged; an alarm where it does not."""

import logging
from dataclasses import replace
from typing import Any

import lightning
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from data_pipeline.contract import UserError
from modules.losses.flow import RGB, add_noise

log = logging.getLogger(__name__)

EMBEDDINGS = ("view_embedding", "modality_embedding")


class ConditionProbes(lightning.Callback):
    """Logs `val/probe/<condition>` on the first validation batch and warns of dead conditions.

    The figure is the root mean square of the change over that of the prediction. A condition is
    dead when it is trained on and moves the prediction by less than `threshold` all the same: one
    that was connected wrongly, or begins at zero and stays there.

    Args:
        threshold: relative movement below which a condition is dead. A disconnected one moves the
            prediction by exactly 0.
        after_steps: optimizer steps before a condition may be called dead.
        error: whether a dead condition ends the training, instead of a warning.
        level: noise level of the prediction, in (0, 1).
    """

    def __init__(
        self,
        threshold: float = 1e-4,
        after_steps: int = 100,
        error: bool = False,
        level: float = 0.7,
    ) -> None:
        self.threshold, self.after_steps = threshold, after_steps
        self.error, self.level = error, level

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx > 0:
            return
        movements = condition_movements(pl_module, batch, self.level)
        figures = {f"val/probe/{name}": value for name, value in movements.items()}
        pl_module.log_dict(figures, batch_size=len(batch["latents"]), sync_dist=True)
        largest = {  # over processes, so that all of them come to one verdict
            name: float(trainer.strategy.reduce(value, reduce_op="max"))  # pyright: ignore[reportArgumentType]
            for name, value in movements.items()
        }
        self.check(largest, trainer.global_step)

    def check(self, movements: dict[str, float], step: int) -> None:
        """Warn of dead conditions, or raise.

        Raises:
            UserError: a condition is dead and `error` is set.
        """
        dead = [name for name, value in movements.items() if not value >= self.threshold]
        if step < self.after_steps or not dead:
            return
        message = (
            f"after {step} steps the prediction does not depend on {', '.join(dead)} (relative "
            f"movement below {self.threshold}), though it is trained on: the condition is not "
            "connected or gets no gradient. If it is only slow, raise "
            "callbacks.condition_probes.after_steps"
        )
        if self.error:
            raise UserError(message)
        log.warning(message)


@torch.no_grad()
def condition_movements(
    system: Any, batch: dict[str, Any], level: float
) -> dict[str, Float[Tensor, ""]]:
    """Return the relative movement of a prediction for each condition that is trained on.

    Exchanged are, each alone: `text` for that of the next sample, or for the null caption where
    all captions are the same; `image` for null references, which keep their vision tokens;
    `vision`, these tokens, for null ones beside the references; `geometry`, clean normal and coord,
    for noise, which only rgb is to answer; `view`, which view each image is said to be;
    `view_embedding` and `modality_embedding` for their neighbours.

    The conditions depend on the system alone, never on the batch: processes reduce each of them
    together.

    Args:
        system: a `LatentDiffusionSystem`.
        batch: of its data.
        level: noise level, in (0, 1).
    """
    latents, captions = batch["latents"], batch["caption"]
    generator = torch.Generator(latents.device).manual_seed(0)
    noise = torch.randn(latents.shape, device=latents.device, generator=generator)
    timesteps = latents.new_full(latents.shape[:2], level)
    noisy = add_noise(latents, noise, timesteps)
    seen = system.references.first(latents)
    conditions = system.conditions(batch, captions, seen)
    before = system.predict(noisy, timesteps, conditions)
    found: dict[str, Tensor] = {}

    def moved(name: str, after: Tensor) -> None:
        found[name] = _movement(before, after)

    if system.text_dropout < 1.0:
        shuffled = captions[1:] + captions[:1]
        other = shuffled if shuffled != captions else [""] * len(captions)
        other = system.conditions(batch, other, seen)
        moved("text", system.predict(noisy, timesteps, other))
    for name, field in (("image", "references"), ("vision", "vision")):
        if (told := getattr(conditions, field)) is not None:
            other = replace(conditions, **{field: torch.zeros_like(told)})
            moved(name, system.predict(noisy, timesteps, other))
    if system.denoiser.layout == "joint":
        views = torch.arange(latents.shape[2], device=latents.device).roll(1)
        views = views.expand(len(latents), -1)
        moved("view", system.predict(noisy, timesteps, conditions, views=views))
        for name in EMBEDDINGS:
            other = {name: getattr(system.denoiser, name).roll(1, 0)}
            given = (noisy, timesteps, conditions.text)
            moved(name, functional_call(system.denoiser, other, given, conditions.options))
    if system.mix.texture > 0.0:
        timesteps = torch.zeros_like(timesteps)
        timesteps[:, RGB] = level
        noisy = add_noise(latents, noise, timesteps)
        other = noise.clone()
        other[:, RGB] = noisy[:, RGB]
        both = [system.predict(each, timesteps, conditions)[:, RGB] for each in (noisy, other)]
        found["geometry"] = _movement(*both)
    return found


def _movement(before: Float[Tensor, "*rest"], after: Float[Tensor, "*rest"]) -> Float[Tensor, ""]:
    size = before.float().square().mean().sqrt().clamp_min(1e-12)
    return (after.float() - before.float()).square().mean().sqrt() / size
