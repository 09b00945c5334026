"""What the views say of one surface, as one set of weighted points."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import ndimage

from modules.geometry.lift import Observation
from modules.geometry.view_noise import trespasses

LEAST_STEP = 6.0
"""Pixels beside such a step in depth, in pixel spacings, are on an outline."""

FAR = 1e6
"""The depth of what is not there."""


@dataclass(frozen=True)
class FusedPoints:
    """Points that a field is made of.

    Args:
        position: world.
        normal: unit, outwards.
        weight: how much each counts; positive.
    """

    position: Float[ndarray, "n 3"]
    normal: Float[ndarray, "n 3"]
    weight: Float[ndarray, " n"]


def fuse(observation: Observation, noise: float, cell: float) -> FusedPoints:
    """Return the points that the field is made of, and how much each counts.

    Where views disagree, unreliable points go, and where it is worth it one mean point per cell of
    space and dominant direction is left: noise averages out.

    Args:
        observation: of views that were aligned.
        noise: how far they disagreed before, world units.
        cell: side of the cells.
    """
    position, normal = observation.position, observation.normal
    weight = np.ones(len(position))
    if noise > 0:
        reliable = reliability(observation)
        kept = reliable > 0
        if kept.any():
            position, normal, weight = position[kept], normal[kept], reliable[kept]
    if cell < 0.5 * observation.spacing:
        return FusedPoints(position=position, normal=normal, weight=weight)
    axis = np.abs(normal).argmax(axis=1)
    side = axis * 2 + (np.take_along_axis(normal, axis[:, None], axis=1)[:, 0] > 0)
    key = np.concatenate([np.floor(position / cell).astype(np.int64), side[:, None]], axis=1)
    _, group = np.unique(key, axis=0, return_inverse=True)
    group = group.reshape(-1)
    total = np.bincount(group, weight)[:, None]
    sums = [
        np.stack([np.bincount(group, weight * values[:, i]) for i in range(3)], axis=1)
        for values in (position, normal)
    ]
    length = np.maximum(np.linalg.norm(sums[1], axis=1, keepdims=True), 1e-9)
    mean = sums[0] / np.maximum(total, 1e-12)
    return FusedPoints(position=mean, normal=sums[1] / length, weight=total[:, 0])


def reliability(observation: Observation) -> Float[ndarray, " n"]:
    """Return how much each point of views that disagree counts, in [0, 1].

    The cosine of the view's angle, and less where another view looks through the point: half at a
    distance of one pixel. Beside an outline or a step in depth, where decoders blend what is before
    and behind, a fifth of it, and nothing for points that another view looks through.
    """
    spacing, trespass = observation.spacing, trespasses(observation)
    toward = np.stack([camera.matrix[:3, 2] for camera in observation.cameras])[observation.view]
    weight = np.clip((observation.normal * toward).sum(axis=1), 0.1, 1.0)
    depth = np.where(observation.hit, observation.depth, FAR)
    step = ndimage.maximum_filter(depth, (1, 3, 3)) - ndimage.minimum_filter(depth, (1, 3, 3))
    beside = (step > LEAST_STEP * spacing)[observation.hit]
    weight *= np.where(beside, np.where(trespass > 0.0, 0.0, 0.2), 1.0)
    return weight / (1.0 + (trespass / spacing) ** 2)
