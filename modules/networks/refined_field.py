"""The refiner-decoder's field: the classical estimate of one observation plus what was learned."""

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from modules.geometry.classical_field import ClassicalField
from modules.geometry.evidence import evidence_volumes
from modules.networks.refiner import Refiner


class RefinedField:
    """Signed distance and colour at any point, for extraction and baking.

    Args:
        classical: the classical field.
        refiner: the network; None leaves the classical field as it is.
    """

    def __init__(self, classical: ClassicalField, refiner: Refiner | None) -> None:
        self.classical = classical
        self.refiner = refiner
        if refiner is not None:
            volumes = evidence_volumes(classical, refiner.side)
            with torch.inference_mode():
                self._volumes = refiner.encode(*(self._tensor(volume) for volume in volumes))

    def distance(self, points: Float[ndarray, "p 3"]) -> Float[ndarray, " p"]:
        """Return signed distances at world points, positive outside."""
        sample = self.classical.sample(points)
        if self.refiner is None or not len(points):
            return sample.distance
        with torch.inference_mode():
            residual = self.refiner.distance_residual(
                self._volumes,
                self._tensor(points),
                self._tensor(self.classical.features(points, sample)),
            )
        return sample.distance + residual[0].cpu().numpy().astype(np.float64)

    def colour(
        self, points: Float[ndarray, "p 3"], normals: Float[ndarray, "p 3"]
    ) -> Float[ndarray, "p 3"]:
        """Return sRGB in [0, 1] at world points on the surface with these unit normals."""
        base = self.classical.colour(points, normals)
        if self.refiner is None or not len(points):
            return base
        features = self.classical.features(points, self.classical.sample(points))
        with torch.inference_mode():
            residual = self.refiner.colour_residual(
                self._volumes, *(self._tensor(each) for each in (points, features, base, normals))
            )
        return np.clip(base + residual[0].cpu().numpy().astype(np.float64), 0.0, 1.0)

    def _tensor(self, array: Float[ndarray, "..."]) -> Tensor:
        """Return an array as a batch of one, where the network is."""
        assert self.refiner is not None
        device = next(self.refiner.parameters()).device
        return torch.from_numpy(np.asarray(array, dtype=np.float32))[None].to(device)
