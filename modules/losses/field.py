"""Losses on signed distance and colour fields."""

import torch
from jaxtyping import Float
from torch import Tensor

MOST_BALANCED = 8.0
"""Largest weight by which the rarer side of a surface is made to count as much as the other."""


def near_weights(
    target: Float[Tensor, "b n"], confidence: Float[Tensor, "b n"], reach: float
) -> Float[Tensor, "b n"]:
    """Return weights of the points near a surface: both of its sides count alike in every sample.

    Only a few of the points near a thin sheet lie inside of it. If they counted no more than
    others, what is not sure where a sheet lies would err least by leaving it out.

    Args:
        target: signed distances.
        confidence: how sure their sign is, in [0, 1].
        reach: points farther away than this have no weight, world units.
    """
    near = (target.abs() < reach).to(target.dtype)
    inside = (target < 0).to(target.dtype)
    sides = torch.stack([inside, 1.0 - inside])
    shares = (sides * near * confidence).sum(dim=-1) + 1e-3
    factor = (0.5 * shares.sum(dim=0) / shares).clamp_max(MOST_BALANCED)
    return near * (sides * factor[..., None]).sum(dim=0)


def distance_loss(
    predicted: Float[Tensor, "*n"],
    target: Float[Tensor, "*n"],
    confidence: Float[Tensor, "*n"],
    truncation: float,
    weight: Float[Tensor, "*n"],
) -> Float[Tensor, ""]:
    """Return the weighted mean absolute error of truncated distances, in units of the truncation.

    Where the sign of the target is not known, distances are compared without their signs.

    Args:
        predicted: signed distances.
        target: signed distances.
        confidence: how sure the target's sign is, in [0, 1]: the weight of the signed error.
        truncation: distances beyond it count as it.
        weight: how much each point counts.
    """
    predicted = predicted.clamp(-truncation, truncation)
    target = target.clamp(-truncation, truncation)
    signed = (predicted - target).abs()
    unsigned = (predicted.abs() - target.abs()).abs()
    error = confidence * signed + (1.0 - confidence) * unsigned
    return (weight * error).sum() / weight.sum().clamp_min(1e-6) / truncation


def wrong_side(
    predicted: Float[Tensor, "*n"], target: Float[Tensor, "*n"], weight: Float[Tensor, "*n"]
) -> Float[Tensor, ""]:
    """Return the weighted share of points that lie on the wrong side of the zero set, in [0, 1].

    What a mesh shows of a field; distances may err without its zero set moving.
    """
    wrong = ((predicted > 0) != (target > 0)).to(weight.dtype)
    return (weight * wrong).sum() / weight.sum().clamp_min(1e-6)


def point_losses(
    moved: Float[Tensor, "b n"],
    normals: Float[Tensor, "b n 3"],
    depth: Float[Tensor, "b n"],
    truth: Float[Tensor, "b n 3"],
    along: Float[Tensor, "b n 3"],
    known: Float[Tensor, "b n"],
    truncation: float,
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Return every sample's errors of lifted points as corrected: of positions and of normals.

    Mean distance from the plane that is truly seen, in units of the truncation and at most 1, where
    the truth lies behind the edge of something nearer; and the mean of 1 - cosine.

    Args:
        moved: what is added to the depths of points, world units.
        normals: the points' unit normals.
        depth: what is missing to their depths.
        truth: their true unit normals.
        along: how each moves when its depth grows by one.
        known: weight of each point.
        truncation: world units.
    """
    squarely = (along * truth).sum(dim=-1).abs().clamp(0.1, 1.0)
    away = (squarely * (moved - depth).abs() / truncation).clamp_max(1.0)
    cosine = torch.nn.functional.cosine_similarity(normals, truth, dim=-1)
    total = known.sum(dim=1).clamp_min(1e-6)
    return (known * away).sum(dim=1) / total, (known * (1.0 - cosine)).sum(dim=1) / total


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
