"""Colours anywhere in space, from the coloured points that the views show."""

import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor
from torch.nn.functional import embedding

from modules.geometry.lift import Observation
from modules.geometry.neighbours import PointIndex, in_chunks


class ColourField:
    """Colour of the nearest lifted points.

    Args:
        observation: whose points, normals and colours count.
        spacing: world units between the points.
        neighbours: nearest points that are weighed.
        bandwidth: standard deviation of the Gaussian weights, in spacings.
        device: where it is evaluated.
    """

    def __init__(
        self,
        observation: Observation,
        spacing: float,
        *,
        neighbours: int = 10,
        bandwidth: float = 0.75,
        device: torch.device | str = "cpu",
    ) -> None:
        self._spacing, self._bandwidth, self._device = spacing, bandwidth, torch.device(device)
        position, self._normal, self._colour = (
            torch.from_numpy(each).to(self._device)
            for each in (observation.position, observation.normal, observation.colour)
        )
        self._count = min(neighbours, len(position))
        self._nearby = PointIndex(position)

    def __call__(
        self, points: Float[ndarray, "p 3"], normals: Float[ndarray, "p 3"] | None = None
    ) -> Float[ndarray, "p 3"]:
        """Return sRGB in [0, 1] of the nearest lifted points that face like `normals`, if given."""
        given = (points,) if normals is None else (points, normals)
        return in_chunks(self._colours, self._device, *given)[0]

    def _colours(
        self, points: Float[Tensor, "p 3"], normals: Float[Tensor, "p 3"] | None = None
    ) -> tuple[Float[Tensor, "p 3"]]:
        """Return what a call does."""
        distance, index = self._nearby.query(points, self._count)
        squared = distance**2
        if normals is not None:
            facing = torch.einsum("pkc,pc->pk", embedding(index, self._normal), normals)
            # A point that faces away counts as much farther: the other side of a thin wall.
            squared = squared + (3.0 * self._spacing * (1.0 - facing)) ** 2
        scale = 2.0 * (self._bandwidth * self._spacing) ** 2
        weight = (-squared / scale).softmax(dim=1)
        return (torch.einsum("pk,pkc->pc", weight, embedding(index, self._colour)),)
