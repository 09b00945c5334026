"""The refiner-decoder's field: the classical estimate of one observation plus what was learned."""

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from modules.geometry.classical_field import ClassicalField
from modules.geometry.evidence import Evidence
from modules.networks.refiner import Refiner


class RefinedField:
    """Signed distance and colour at any point, for extraction and baking.

    The network is asked only where there is doubt: exact images cost little more than without it.

    Args:
        classical: the classical field.
        refiner: the network; None leaves the classical field as it is.
    """

    def __init__(self, classical: ClassicalField, refiner: Refiner | None) -> None:
        self.classical = classical
        self.refiner = refiner
        if refiner is not None:
            self._evidence = Evidence(classical)
            volumes = self._evidence.volumes(refiner.side)
            with torch.inference_mode():
                self._volumes = refiner.encode(*(self._tensor(volume) for volume in volumes))

    def distance(self, points: Float[ndarray, "p 3"]) -> Float[ndarray, " p"]:
        """Return signed distances at world points, positive outside."""
        sample = self.classical.sample(points)
        doubted = self._doubted(points, sample.free)
        if self.refiner is None or not len(doubted):
            return sample.distance
        chosen = points[doubted]
        with torch.inference_mode():
            residual = self.refiner.distance_residual(
                self._volumes,
                self._tensor(chosen),
                self._tensor(self._evidence.features(chosen, sample.at(doubted))),
            )
        distance = sample.distance.copy()
        distance[doubted] += residual[0].cpu().numpy().astype(np.float64)
        return distance

    def colour(
        self, points: Float[ndarray, "p 3"], normals: Float[ndarray, "p 3"]
    ) -> Float[ndarray, "p 3"]:
        """Return sRGB in [0, 1] at world points on the surface with these unit normals."""
        colour = self.classical.colour(points, normals)
        doubted = self._doubted(points, self.classical.free_space(points))
        if self.refiner is None or not len(doubted):
            return colour
        chosen = points[doubted]
        features = self._evidence.features(chosen, self.classical.sample(chosen))
        inputs = chosen, features, colour[doubted], normals[doubted]
        with torch.inference_mode():
            residual = self.refiner.colour_residual(
                self._volumes, *(self._tensor(each) for each in inputs)
            )
        colour = colour.copy()
        colour[doubted] += residual[0].cpu().numpy().astype(np.float64)
        return np.clip(colour, 0.0, 1.0)

    def _doubted(self, points: Float[ndarray, "p 3"], free: Float[ndarray, " p"]) -> ndarray:
        """Return the indices of the points where the network may say something."""
        if self.refiner is None or not len(points):
            return np.empty(0, dtype=np.int64)
        return np.flatnonzero(self._evidence.doubt(points, free)[0] > 0)

    def _tensor(self, array: Float[ndarray, "..."]) -> Tensor:
        """Return an array as a batch of one, where the network is."""
        assert self.refiner is not None
        device = next(self.refiner.parameters()).device
        return torch.from_numpy(np.asarray(array, dtype=np.float32))[None].to(device)
