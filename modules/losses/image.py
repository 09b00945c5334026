"""Losses of the image autoencoder, over images in [-1, 1]."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


def reconstruction_loss(
    predicted: Float[Tensor, "n 3 h w"], target: Float[Tensor, "n 3 h w"]
) -> Float[Tensor, " n"]:
    """Return mean absolute plus mean square error per image."""
    difference = predicted - target
    return (difference.abs() + difference.square()).flatten(1).mean(dim=1)


def gradient_loss(
    predicted: Float[Tensor, "n 3 h w"], target: Float[Tensor, "n 3 h w"]
) -> Float[Tensor, " n"]:
    """Return the mean absolute error of the differences between neighbouring pixels, per image."""
    difference = predicted - target
    along_x = difference.diff(dim=-1).abs().flatten(1).mean(dim=1)
    along_y = difference.diff(dim=-2).abs().flatten(1).mean(dim=1)
    return along_x + along_y


def normal_angle_loss(
    predicted: Float[Tensor, "n 3 h w"],
    target: Float[Tensor, "n 3 h w"],
    hit: Bool[Tensor, "n h w"],
) -> Float[Tensor, ""]:
    """Return the mean of 1 - cos(angle) over hit pixels, in [0, 2]; any length of `predicted`."""
    cosine = nn.functional.cosine_similarity(predicted, target, dim=1, eps=1e-4)
    return ((1.0 - cosine) * hit).sum() / hit.sum().clamp_min(1)


def position_losses(
    predicted: Float[Tensor, "n 3 h w"],
    target: Float[Tensor, "n 3 h w"],
    hit: Bool[Tensor, "n h w"],
    axis: Float[Tensor, "n 3"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the mean error over hit pixels of coords: of the position, and along the view's axis.

    Args:
        predicted: coord images; they hold 2 units to one of the world, whose units the result has.
        target: the true ones.
        hit: their exact foreground.
        axis: unit vector of each image's viewing axis, of either sign.
    """
    error, num_pixels = (predicted - target) / 2.0, hit.sum().clamp_min(1)
    # Not einsum, which autocast computes in bfloat16.
    along = (error * axis[:, :, None, None]).sum(dim=1).abs()
    return (error.norm(dim=1) * hit).sum() / num_pixels, (along * hit).sum() / num_pixels


def kl_loss(
    mean: Float[Tensor, "n c h w"], log_variance: Float[Tensor, "n c h w"]
) -> Float[Tensor, ""]:
    """Return the mean divergence per latent value from the unit normal distribution."""
    log_variance = log_variance.clamp(-30.0, 20.0)
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()


def peak_signal_to_noise(
    predicted: Float[Tensor, "*batch h w"], target: Float[Tensor, "*batch h w"]
) -> Float[Tensor, ""]:
    """Return the PSNR in dB of images in [-1, 1] (a range of 2)."""
    error = (predicted.clamp(-1.0, 1.0) - target).square().mean()
    return 10.0 * torch.log10(4.0 / error.clamp_min(1e-12))
