"""How far the views of one object contradict each other: what needs no truth to be seen."""

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy import ndimage
from scipy.spatial import cKDTree

from modules.geometry.cameras import project_inside
from modules.geometry.lift import Observation

LARGEST_RADIUS = 0.06
"""Points of two views may be one piece of surface within this distance, in world units."""

FACE_ALIKE = 0.35
"""And with unit normals that differ by less than this."""

FEWEST_MATCHES = 20

RANDOM_SHARE = 0.7
"""What drifts is less than this share of random errors: .4 to .6 of the small autoencoder's at 64
px, to .7 at 128, and .73 to .98 of TAEF2's, of either decoder."""

LARGEST_NOISE = 0.04
"""World units: images that contradict each other by more are read as if by this much. What is one
view's error must not melt what the others show."""


def estimate_noise(observation: Observation) -> float:
    """Return how far the views contradict each other: world units, 0 for exact images.

    The greatest of three figures. Points of two views that may be one surface lie off each other's
    planes by half again their median; up to .15 pixels of it is what pixels on a curved surface
    differ by. A lifted point lies in front of nothing that another view saw, and on no view's
    background, but for errors: the upper quartile of those trespasses, a pixel of grace given.
    And coords that miss their pixels' rays will have missed along the rays by about as much: half
    of the median, which counts two axes; up to a tenth of a pixel may be rounding. Where that is
    at random, coords are better than the normals beside them, and points off each other's planes
    tell of those.
    """
    if not len(observation.position):
        return 0.0
    pairs = matches(observation, observation.position, LARGEST_RADIUS, count=2000)
    off = 0.0
    if len(pairs) > FEWEST_MATCHES:
        normal = mean_normal(observation.normal, pairs)
        apart = observation.position[pairs[:, 0]] - observation.position[pairs[:, 1]]
        off = float(np.median(np.abs((normal * apart).sum(axis=1))))
    along = float(np.median(observation.misplaced))
    if errs_at_random(observation):
        off = 0.0
    return max(
        1.5 * off if off > 0.15 * observation.spacing else 0.0,
        0.5 * along if along > 0.1 * observation.spacing else 0.0,
        float(np.percentile(trespasses(observation), 75)),
    )


def errs_at_random(observation: Observation) -> bool:
    """Return whether coords miss their rays mostly each in its own way, not with those around them.

    So do the project's small autoencoder's, where no view lies apart from the others. Those of
    autoencoders made for pictures drift: neighbours err alike, and views differently.
    """
    missed = float(np.median(observation.misplaced))
    return missed > 0.1 * observation.spacing and observation.drift < RANDOM_SHARE * missed


def matches(
    observation: Observation, position: Float[ndarray, "n 3"], radius: float, count: int
) -> Int[ndarray, "r 2"]:
    """Return pairs of points that two views saw and that may be one piece of surface.

    Args:
        observation: whose views and normals count.
        position: of the points, which may have moved since they were lifted.
        radius: at most so far apart, world units.
        count: at most so many points of other views are matched with each view's.
    """
    place = np.concatenate([position / radius, observation.normal / FACE_ALIKE], axis=1)
    rng, found = np.random.default_rng(0), [np.zeros((0, 2), dtype=np.int64)]
    for view in range(len(observation.cameras)):
        own = np.flatnonzero(observation.view == view)
        other = np.flatnonzero(observation.view != view)
        if not len(own) or not len(other):
            continue
        if len(other) > count:
            other = rng.choice(other, count, replace=False)
        distance, nearest = cKDTree(place[own]).query(place[other], distance_upper_bound=1.0)
        near = np.isfinite(distance)
        found.append(np.stack([other[near], own[nearest[near]]], axis=1))
    return np.concatenate(found)


def mean_normal(normal: Float[ndarray, "n 3"], pairs: Int[ndarray, "r 2"]) -> Float[ndarray, "r 3"]:
    """Return the unit mean normal of each pair of points."""
    total = normal[pairs[:, 0]] + normal[pairs[:, 1]]
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-9)


def trespasses(observation: Observation) -> Float[ndarray, " n"]:
    """Return how far points lie where other views say that nothing is, world units.

    A sheet whose two sides were seen is there, whatever another view looks through: seen from its
    edge it may hit no pixel.
    """
    position, view, spacing = observation.position, observation.view, observation.spacing
    trespass = np.zeros(len(position))
    for index, camera in enumerate(observation.cameras):
        hit = observation.hit[index]
        if not hit.any():
            continue
        own = np.flatnonzero(view != index)
        inside, pixels, depth = project_inside(camera, position[own], len(hit))
        own, (column, row) = own[inside], pixels.astype(np.int64).T
        closest = ndimage.minimum_filter(observation.depth[index], 3)[row, column]
        outside = ndimage.distance_transform_edt(~hit)[row, column] * spacing - spacing
        amount = np.where(np.isfinite(closest), closest - depth, outside)
        amount[np.isneginf(closest)] = 0.0  # a view that cannot tell contradicts nothing
        trespass[own] = np.maximum(trespass[own], amount)
    doubted = np.flatnonzero(trespass > 0.0)
    trespass[doubted[_on_sheet(observation, doubted)]] = 0.0
    return trespass


def _on_sheet(observation: Observation, chosen: Int[ndarray, " q"]) -> Bool[ndarray, " q"]:
    """Return which of some lifted points have one that faces the other way within 1.5 spacings."""
    position, normal = observation.position, observation.normal
    ranks = list(range(1, min(8, len(position)) + 1))
    reach = 1.5 * observation.spacing
    distance, index = cKDTree(position).query(position[chosen], k=ranks, distance_upper_bound=reach)
    found = np.isfinite(distance)
    facing = np.einsum("qkc,qc->qk", normal[np.where(found, index, 0)], normal[chosen])
    return (found & (facing < -0.5)).any(axis=1)
