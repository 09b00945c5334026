"""Sampling: a flow is integrated from noise to clean latents by diffusers' schedulers.

A scheduler has one noise level per step. That is enough: a modality of a sample is either noisy, at
that level, or held clean, at level 0 from start to end. Held ones are put back after every step,
bit by bit.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from jaxtyping import Bool, Float
from torch import Tensor

from modules.pipelines.sampling_options import Sampling

Progress = Callable[[int, int], None]
"""Called after every pass of the denoiser with the number of passes done and of all passes."""

Velocity = Callable[[Tensor, Tensor, bool], Tensor]
"""Velocity at latents (b m v c h w) and timesteps (b m); guided or not."""


def integrate(
    velocity: Velocity,
    noise: Float[Tensor, "b m v c h w"],
    sampling: Sampling,
    *,
    shift: float,
    start: float = 1.0,
    clean: Float[Tensor, "b m v c h w"] | None = None,
    held: Bool[Tensor, "b m"] | None = None,
    progress: Progress | None = None,
) -> Float[Tensor, "b m v c h w"]:
    """Integrate the flow from noise to latents.

    Args:
        velocity: of the flow.
        noise: to start from; or latents that are noised to the level `start`.
        sampling: how.
        shift: of the noise levels; above 1 takes finer steps where noise is strong.
        start: noise level in (0, 1] of `noise`.
        clean: latents of what is held; the rest of it is not read.
        held: modalities of samples that stay clean, at timestep 0, from start to end; None: none.
        progress: called after every pass.
    """
    scheduler = make_scheduler(sampling, shift, start)
    is_noisy = torch.ones(noise.shape[:2], device=noise.device)
    if held is not None:
        is_noisy[held] = 0.0

    def hold(latents: Tensor) -> Tensor:
        if clean is None:
            return latents
        return torch.where(is_noisy[:, :, None, None, None, None] > 0, latents, clean)

    latents, passes = hold(noise), len(scheduler.timesteps)
    for i, timestep in enumerate(scheduler.timesteps):
        level = scheduler.sigmas[i].item()
        change = velocity(latents, level * is_noisy, sampling.guides(level))
        latents = hold(scheduler.step(change, timestep, latents, return_dict=False)[0])
        if progress is not None:
            progress(i + 1, passes)
    return latents


def make_scheduler(sampling: Sampling, shift: float, start: float = 1.0) -> Any:
    """Return the solver's scheduler, one entry of `timesteps` and `sigmas` per pass.

    All solvers take the same levels, those of Euler's: shifted, from exactly 1 to exactly 0. The
    other two schedulers would choose their own: Heun's ends with a step of .001, and
    DPM-Solver++'s starts at .999 and rounds to whole thousandths. From another `start` the steps
    are as long as they would be from 1, and so many fewer.
    """
    unshifted = start / (shift - (shift - 1.0) * start)
    steps = max(1, round(sampling.steps * unshifted))
    euler: Any = FlowMatchEulerDiscreteScheduler(shift=shift)
    euler.set_timesteps(sigmas=torch.linspace(unshifted, unshifted / steps, steps).tolist())
    if sampling.solver == "euler":
        return euler
    levels = euler.sigmas.clamp(max=1.0)  # rounding may leave the first a little above
    scheduler: Any
    if sampling.solver == "heun":
        scheduler = FlowMatchHeunDiscreteScheduler()
        scheduler.set_timesteps(steps)
        twice = levels[1:-1].repeat_interleave(2)
        scheduler.sigmas = torch.cat([levels[:1], twice, levels[-1:]])
    else:
        scheduler = DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", final_sigmas_type="zero"
        )
        scheduler.set_timesteps(steps)
        scheduler.sigmas = levels
    scheduler.timesteps = scheduler.sigmas[:-1] * scheduler.config.num_train_timesteps
    scheduler.set_begin_index(0)
    return scheduler


def rescale(
    guided: Float[Tensor, "b m *rest"], plain: Float[Tensor, "b m *rest"], share: float
) -> Float[Tensor, "b m *rest"]:
    """Move the deviation of clean predictions towards that of those without guidance.

    Per sample and modality; equation 15 and 16 of arXiv 2305.08891, there for images.
    """
    deviations = [each.flatten(2).std(dim=2) for each in (plain, guided)]
    factor = deviations[0] / deviations[1].clamp_min(1e-12)
    factor = 1.0 - share + share * factor
    return guided * factor.reshape(*factor.shape, *[1] * (guided.ndim - 2))
