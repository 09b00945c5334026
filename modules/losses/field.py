"""Losses on signed distance and colour fields."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def distance_loss(
    predicted: Float[Tensor, "*n"],
    target: Float[Tensor, "*n"],
    confidence: Float[Tensor, "*n"],
    truncation: float,
    near: float = 1.0,
) -> Float[Tensor, ""]:
    """Return the weighted mean absolute error of truncated distances, in units of the truncation.

    Where the sign of the target is not known, distances are compared without their signs.

    Args:
        predicted: signed distances.
        target: signed distances.
        confidence: how sure the target's sign is, in [0, 1]: the weight of the signed error.
        truncation: distances beyond it count as it.
        near: weight of points within half of the truncation of the surface, where those farther
            away have 1; infinite for the error of the near ones alone.
    """
    weight = (target.abs() < 0.5 * truncation).to(predicted.dtype)
    weight = weight if math.isinf(near) else 1.0 + (near - 1.0) * weight
    predicted = predicted.clamp(-truncation, truncation)
    target = target.clamp(-truncation, truncation)
    signed = (predicted - target).abs()
    unsigned = (predicted.abs() - target.abs()).abs()
    error = confidence * signed + (1.0 - confidence) * unsigned
    return (weight * error).sum() / weight.sum().clamp_min(1e-6) / truncation


def side_loss(
    predicted: Float[Tensor, "*n"],
    target: Float[Tensor, "*n"],
    confidence: Float[Tensor, "*n"],
    softness: float,
    reach: float,
) -> Float[Tensor, ""]:
    """Return the cross-entropy of the side of the surface on which points lie, 0 for the truth.

    A distance d stands for the probability sigmoid(d / softness) of lying outside, so what counts
    is where the zero set lies: an error far away from it, which no mesh shows, hardly does.

    Args:
        predicted: signed distances.
        target: signed distances.
        confidence: how sure the target's sign is, in [0, 1]: a point's weight.
        softness: world units.
        reach: points farther away than this do not count, world units.
    """
    outside = torch.sigmoid(target / softness)
    entropy = torch.nn.functional.binary_cross_entropy(outside, outside, reduction="none")
    cross = torch.nn.functional.binary_cross_entropy_with_logits(
        predicted / softness, outside, reduction="none"
    )
    weight = confidence * (target.abs() < reach)
    return (weight * (cross - entropy)).sum() / weight.sum().clamp_min(1e-6)


def wrong_side(
    predicted: Float[Tensor, "*n"],
    target: Float[Tensor, "*n"],
    confidence: Float[Tensor, "*n"],
    reach: float,
) -> Float[Tensor, ""]:
    """Return the share of the points near the surface that lie on the wrong side of the zero set.

    Args:
        predicted: signed distances.
        target: signed distances.
        confidence: how sure the target's sign is, in [0, 1]: a point's weight.
        reach: points farther away than this do not count, world units.
    """
    weight = confidence * (target.abs() < reach)
    return (weight * ((predicted > 0) != (target > 0))).sum() / weight.sum().clamp_min(1e-6)


def eikonal_loss(
    centre: Float[Tensor, "*n"],
    shifted: Float[Tensor, "*n 3"],
    step: float,
    weight: Float[Tensor, "*n"],
) -> Float[Tensor, ""]:
    """Return the weighted mean of (|gradient| - 1)^2, the gradient taken by forward differences.

    Finite differences, because interpolation from a volume has no second derivative.

    Args:
        centre: distances at some points.
        shifted: distances at the same points moved by `step` along x, y and z.
        step: world units.
        weight: how much each point counts; where all are 0 the loss is 0.
    """
    gradient = (shifted - centre[..., None]) / step
    # The square root has no derivative at 0.
    length = (gradient.square().sum(dim=-1) + 1e-12).sqrt()
    return (weight * (length - 1.0).square()).sum() / weight.sum().clamp_min(1e-6)


def colour_loss(
    predicted: Float[Tensor, "*n 3"], target: Float[Tensor, "*n 3"]
) -> Float[Tensor, ""]:
    """Return the mean Huber error of sRGB colours in [0, 1]: about the absolute error beyond 0.1.

    Most classical colours are all but exact; an absolute error would hold the residual at 0 there,
    and by the network's smoothness everywhere else too.
    """
    return torch.nn.functional.smooth_l1_loss(predicted, target, beta=0.1)
