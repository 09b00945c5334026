"""Rectified flow over modalities: x_t = (1 - t) * clean + t * noise, velocity = noise - clean."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from data_pipeline.contract import MODALITIES

Prediction = Literal["clean", "velocity"]
RGB = MODALITIES.index("rgb")


@dataclass(frozen=True, kw_only=True)
class TimestepMix:
    """How noise levels of the modalities are drawn: shares of four tasks, which sum to 1.

    Args:
        joint: all modalities at one level: text to 2.5D.
        texture: normal and coord clean, rgb noisy: texture for known geometry.
        geometry: rgb clean, normal and coord noisy at one level: geometry from rgb.
        independent: each modality at its own level.
        mean: mean of the logit of t; larger is noisier.
        std: standard deviation of the logit of t.
        mean_tokens: tokens of a modality at which `mean` holds: see `at`. None: at any number.
    """

    joint: float = 0.6
    texture: float = 0.15
    geometry: float = 0.1
    independent: float = 0.15
    mean: float = 0.5
    std: float = 1.0
    mean_tokens: int | None = None

    def __post_init__(self) -> None:
        shares = (self.joint, self.texture, self.geometry, self.independent)
        if min(shares) < 0.0 or abs(sum(shares) - 1.0) > 1e-6:
            raise ValueError(f"shares of the training mix must be >= 0 and sum to 1, not {shares}")

    def at(self, num_tokens: int) -> "TimestepMix":
        """Return the mix for so many tokens: the more there are, the noisier it is.

        Noise hides an image that says the same thing in more tokens less. Levels are shifted to
        s t / (1 + (s - 1) t) with s the root of the ratio of tokens (equation 23 of arXiv
        2403.03206), which adds log(s) to the logit of t. We count the tokens of all views.
        """
        if self.mean_tokens is None:
            return self
        shift = 0.5 * math.log(num_tokens / self.mean_tokens)
        return replace(self, mean=self.mean + shift, mean_tokens=None)

    def sample(
        self, batch_size: int, device: torch.device, generator: torch.Generator | None = None
    ) -> Float[Tensor, "b m"]:
        """Draw the noise level of every sample and modality; exactly 0 means clean."""
        shape = (batch_size, len(MODALITIES))
        normal = torch.randn(shape, device=device, generator=generator)
        independent = torch.sigmoid(self.mean + self.std * normal)
        shared = independent[:, :1].expand(shape)
        is_rgb = torch.arange(len(MODALITIES), device=device) == RGB
        draw = torch.rand(batch_size, 1, device=device, generator=generator)
        texture_until = self.joint + self.texture
        geometry_until = texture_until + self.geometry
        timesteps = torch.where(draw < geometry_until, shared, independent)
        texture = (draw >= self.joint) & (draw < texture_until)
        geometry = (draw >= texture_until) & (draw < geometry_until)
        return timesteps.masked_fill((texture & ~is_rgb) | (geometry & is_rgb), 0.0)

    def levels(self, count: int) -> Float[Tensor, " count"]:
        """Return quantiles of the noise levels drawn, each as likely as the others, ascending."""
        shares = (torch.arange(count) + 0.5) / count
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(shares))


def add_noise(
    clean: Float[Tensor, "b m *rest"],
    noise: Float[Tensor, "b m *rest"],
    timesteps: Float[Tensor, "b m"],
) -> Float[Tensor, "b m *rest"]:
    """Return x_t; at t = 0 exactly `clean`."""
    t = _expand(timesteps, clean)
    return (1.0 - t) * clean + t * noise


def to_velocity(
    prediction: Float[Tensor, "b m *rest"],
    noisy: Float[Tensor, "b m *rest"],
    timesteps: Float[Tensor, "b m"],
    kind: Prediction,
    min_t: float,
) -> Float[Tensor, "b m *rest"]:
    """Return the velocity that a network's prediction stands for.

    A clean prediction gives (x_t - clean) / t; `min_t` bounds the division, so that small t do not
    dominate the loss (and the last sampling steps do not amplify errors).
    """
    if kind == "velocity":
        return prediction
    return (noisy - prediction) / _expand(timesteps, noisy).clamp_min(min_t)


def velocity_target(
    clean: Float[Tensor, "b m *rest"],
    noisy: Float[Tensor, "b m *rest"],
    noise: Float[Tensor, "b m *rest"],
    timesteps: Float[Tensor, "b m"],
    kind: Prediction,
    min_t: float,
) -> Float[Tensor, "b m *rest"]:
    """Return what `to_velocity` of a perfect prediction is: noise - clean, less below `min_t`."""
    if kind == "velocity":
        return noise - clean
    return to_velocity(clean, noisy, timesteps, kind, min_t)


def mean_over_noisy(
    errors: Float[Tensor, "b m"], timesteps: Float[Tensor, "b m"]
) -> Float[Tensor, " m"]:
    """Average each modality over the samples in which it is noisy; 0 where none is."""
    noisy: Bool[Tensor, "b m"] = timesteps > 0.0
    return (errors * noisy).sum(dim=0) / noisy.sum(dim=0).clamp_min(1)


def mean_square(values: Float[Tensor, "b m *rest"]) -> Float[Tensor, "b m"]:
    """Return the mean square per sample and modality."""
    return values.square().flatten(2).mean(dim=2)


def weighted_mean_square(
    values: Float[Tensor, "b m v c h w"], coverage: Float[Tensor, "b v h w"], foreground: float
) -> Float[Tensor, "b m"]:
    """Return the mean square per sample and modality, cells weighted by what they show.

    Args:
        values: to square.
        coverage: share of a cell that shows the asset, in [0, 1].
        foreground: weight of a cell that shows nothing else; one of background has weight 1.
    """
    weights = 1.0 + (foreground - 1.0) * coverage
    per_cell = values.square().mean(dim=3)
    return (per_cell * weights[:, None]).sum((2, 3, 4)) / weights.sum((1, 2, 3))[:, None]


def _expand(timesteps: Float[Tensor, "b m"], like: Float[Tensor, "b m *rest"]) -> Tensor:
    return timesteps.reshape(*timesteps.shape, *[1] * (like.ndim - 2))
