"""The refiner-decoder's field: the classical estimate of one observation, and what was learned."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from modules.geometry.classical_field import ClassicalField
from modules.geometry.evidence import Evidence
from modules.geometry.lift import Observation
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
        """Of the points as the network corrected them."""
        self.refiner = refiner
        if refiner is not None:
            self._evidence = Evidence(classical)
            volumes = self._evidence.volumes(refiner.side)
            with torch.inference_mode():
                self._volumes = refiner.encode(*(self._tensor(volume) for volume in volumes))
            if self._evidence.contradiction > 0:
                self.classical = classical.of(self._corrected(classical))

    def _corrected(self, classical: ClassicalField) -> Observation:
        """Return the observation with depths and normals as the network corrects them."""
        assert self.refiner is not None
        seen = classical.observation
        along = seen.along
        features = self._evidence.features(seen.position, classical.sample(seen.position))
        with torch.inference_mode():
            moved, normal = (
                each[0].cpu().numpy().astype(np.float64)
                for each in self.refiner.correct_points(
                    self._volumes,
                    *(self._tensor(each) for each in (seen.position, features, seen.normal, along)),
                )
            )
        depth = seen.depth.copy()
        depth[seen.hit] += moved
        position = seen.position + moved[:, None] * along
        return replace(seen, depth=depth, position=position, normal=normal)

    def distance(self, points: Float[ndarray, "p 3"]) -> Float[ndarray, " p"]:
        """Return signed distances at world points, positive outside.

        Those of the classical field where views agree: what it takes to lie behind them is then
        better than what was learned.
        """
        sample = self.classical.sample(points)
        refiner = self.refiner
        if refiner is None or not refiner.unseen or self._evidence.contradiction == 0:
            return sample.distance
        unseen = self._doubted(points, sample.free, part=1)
        if not len(unseen):
            return sample.distance
        chosen = points[unseen]
        features = self._evidence.features(chosen, self._evidence.field.sample(chosen))
        with torch.inference_mode():
            residual = refiner.distance_residual(
                self._volumes, self._tensor(chosen), self._tensor(features)
            )
        distance = sample.distance.copy()
        distance[unseen] += residual[0].cpu().numpy().astype(np.float64)
        return distance

    def colour(
        self, points: Float[ndarray, "p 3"], normals: Float[ndarray, "p 3"]
    ) -> Float[ndarray, "p 3"]:
        """Return sRGB in [0, 1] at world points on the surface with these unit normals."""
        colour = self.classical.colour(points, normals)
        if self.refiner is None:
            return colour
        observed = self._evidence.field
        doubted = self._doubted(points, self.classical.free_space(points))
        if not len(doubted):
            return colour
        chosen = points[doubted]
        features = self._evidence.features(chosen, observed.sample(chosen))
        inputs = chosen, features, colour[doubted], normals[doubted]
        with torch.inference_mode():
            residual = self.refiner.colour_residual(
                self._volumes, *(self._tensor(each) for each in inputs)
            )
        colour = colour.copy()
        colour[doubted] += residual[0].cpu().numpy().astype(np.float64)
        return np.clip(colour, 0.0, 1.0)

    def _doubted(
        self, points: Float[ndarray, "p 3"], free: Float[ndarray, " p"], part: int = 0
    ) -> Int[ndarray, " q"]:
        """Return the indices of points in doubt; of those that nothing saw, if `part` is 1."""
        return np.flatnonzero(self._evidence.doubt(points, free)[part] > 0)

    def _tensor(self, array: Float[ndarray, "..."]) -> Tensor:
        """Return an array as a batch of one, where the network is."""
        assert self.refiner is not None
        device = next(self.refiner.parameters()).device
        return torch.from_numpy(np.asarray(array, dtype=np.float32))[None].to(device)
