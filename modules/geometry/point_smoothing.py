"""Random errors of lifted points, averaged out over those that may be one piece of surface."""

from dataclasses import replace

import numpy as np
from scipy.spatial import cKDTree

from modules.geometry.lift import Observation
from modules.geometry.point_fusion import reliability

BANDWIDTH = 1.3
"""Standard deviation of the Gaussian over distance, in pixel spacings: six views of one piece of
surface are some ten points within it."""

NEIGHBOURS = 32
"""Nearest points that are averaged."""

FACE_ALIKE = 0.5
"""Points count less by exp(-(1 - cosine) / FACE_ALIKE ** 2) between their normals: edges stay."""

LEAST_WEIGHT = 1e-3
"""Of points that nothing speaks for: alone, they stay as they are."""

LEAST_COSINE = 0.25
"""Points are moved along their rays, surfaces seen at a smaller cosine not all the way."""


def smooth_points(observation: Observation) -> Observation:
    """Return the observation with depths and normals that agree with those around them.

    Normals become the weighted mean of their neighbours'. Points move along their rays to where
    their neighbours' planes lie in the mean; a plane there is square to the mean of both points'
    new normals, which is exact on a ball, so that nothing shrinks. Points count less beside
    outlines, where views look through them, and where coords miss their rays by much, as their
    depths are off by much too.

    Args:
        observation: of which the views agree but for random errors.
    """
    position, spacing = observation.position, observation.spacing
    ranks = list(range(1, min(NEIGHBOURS, len(position)) + 1))
    distance, near = cKDTree(position).query(position, k=ranks)
    cosine = np.einsum("nkc,nc->nk", observation.normal[near], observation.normal)
    exponent = (distance / (BANDWIDTH * spacing)) ** 2 / 2.0 + (1.0 - cosine) / FACE_ALIKE**2
    usual = max(float(np.median(observation.misplaced)), 0.1 * spacing)
    trust = reliability(observation) / (1.0 + (observation.misplaced / usual) ** 2)
    weight = np.exp(-exponent) * np.maximum(trust, LEAST_WEIGHT)[near]
    weight /= weight.sum(axis=1, keepdims=True)
    normal = np.einsum("nk,nkc->nc", weight, observation.normal[near])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    between = 0.5 * (normal[near] + normal[:, None])
    offset = position[near] - position[:, None]
    missing = np.einsum("nk,nkc,nkc->n", weight, between, offset)
    along = observation.along
    slope = (along * normal).sum(axis=1)
    further = missing / np.copysign(np.maximum(np.abs(slope), LEAST_COSINE), slope)
    depth = observation.depth.copy()
    depth[observation.hit] += further
    moved = position + along * further[:, None]
    return replace(observation, depth=depth, position=moved, normal=normal)
