"""Colours anywhere in space, from the coloured points that the views show."""

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.spatial import cKDTree

from modules.geometry.lift import Observation
from modules.geometry.neighbours import in_chunks, query


class ColourField:
    """Colour of the nearest lifted points.

    Args:
        observation: whose points, normals and colours count.
        spacing: world units between the points.
        neighbours: nearest points that are weighed.
        bandwidth: standard deviation of the Gaussian weights, in spacings.
    """

    def __init__(
        self,
        observation: Observation,
        spacing: float,
        *,
        neighbours: int = 10,
        bandwidth: float = 0.75,
    ) -> None:
        self._observation, self._spacing, self._bandwidth = observation, spacing, bandwidth
        self._ranks = list(range(1, min(neighbours, len(observation.position)) + 1))
        self._tree = cKDTree(observation.position)

    def __call__(
        self, points: Float[ndarray, "p 3"], normals: Float[ndarray, "p 3"] | None = None
    ) -> Float[ndarray, "p 3"]:
        """Return sRGB in [0, 1] of the nearest lifted points that face like `normals`, if given."""
        given = (points,) if normals is None else (points, normals)
        return in_chunks(self._colours, *given)[0]

    def _colours(
        self, points: Float[ndarray, "p 3"], normals: Float[ndarray, "p 3"] | None = None
    ) -> tuple[Float[ndarray, "p 3"]]:
        """Return what a call does."""
        distance, index = query(self._tree, points, k=self._ranks)
        squared = distance**2
        if normals is not None:
            facing = np.einsum("pkc,pc->pk", self._observation.normal[index], normals)
            # A point that faces away counts as much farther: the other side of a thin wall.
            squared = squared + (3.0 * self._spacing * (1.0 - facing)) ** 2
        scale = 2.0 * (self._bandwidth * self._spacing) ** 2
        weight = np.exp(-(squared - squared.min(axis=1, keepdims=True)) / scale)
        weight /= weight.sum(axis=1, keepdims=True)
        return (np.einsum("pk,pkc->pc", weight, self._observation.colour[index]),)
