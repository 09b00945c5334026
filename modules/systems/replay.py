"""Prepared samples that are trained on more than once, each time in another orientation.

To prepare a sample takes a third of a second of a core, a step on it a few milliseconds of a GPU:
most of a batch may be samples that earlier batches brought.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from data_pipeline.contract import UserError

VOLUMES = ("geometry", "colour")
"""Tensors that have three axes of space; the largest of a sample, kept in half precision."""

POINTS = (
    "points", "surface_position", "surface_normal", "seen_position", "seen_normal", "seen_along",
    "seen_truth",
)  # fmt: skip
"""Tensors whose last axis is x, y, z."""

INVARIANT = (
    "distance", "features", "sdf_distance", "sdf_confidence", "surface_albedo",
    "surface_features", "base", "seen_features", "seen_depth", "seen_known",
)  # fmt: skip

VECTORS = slice(1, 7)
"""Channels of the geometry volume that are vectors: mean offset and mean normal."""

ORIENTATIONS = 8
"""Quarter turns about the vertical axis, and their mirror images."""


class Replay:
    """Adds samples of earlier batches to a batch.

    They are no part of a checkpoint: a resumed run gathers them anew.

    Args:
        count: samples that are added; fewer while fewer are kept.
        capacity: samples that are kept: the newest.

    Raises:
        UserError: it keeps fewer than it adds, or than a batch brings.
    """

    def __init__(self, count: int, capacity: int) -> None:
        if not 0 <= count <= capacity:
            raise UserError(
                f"system.replay_count={count} must be at least 0 and at most "
                f"system.replay_capacity={capacity}"
            )
        self.count, self.capacity = count, capacity
        self._kept: dict[str, Tensor] = {}
        self._num_seen = 0

    def __call__(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Return a batch's tensors at points and in volumes, followed by those of kept samples.

        Args:
            batch: of prepared samples, as they are; kept from now on.
            generator: draws which samples are added, and in which orientation.
        """
        fresh = {key: batch[key] for key in (*VOLUMES, *POINTS, *INVARIANT)}
        available = min(self._num_seen, self.capacity)
        joined = fresh
        if available and self.count:
            device = generator.device
            number = min(self.count, available)
            chosen = torch.randperm(available, generator=generator, device=device)[:number]
            orientation = int(torch.randint(ORIENTATIONS, (), generator=generator, device=device))
            old = {key: kept[chosen].to(fresh[key].dtype) for key, kept in self._kept.items()}
            old = turned(old, orientation)
            joined = {key: torch.cat([value, old[key]]) for key, value in fresh.items()}
        self._keep(fresh)
        return joined

    def _keep(self, fresh: dict[str, Tensor]) -> None:
        """Put samples in the place of the oldest."""
        if not self._kept:
            for key, value in fresh.items():
                dtype = torch.float16 if key in VOLUMES else value.dtype
                self._kept[key] = value.new_empty((self.capacity, *value.shape[1:]), dtype=dtype)
        number = len(fresh["points"])
        if number > self.capacity:
            raise UserError(
                f"system.replay_capacity={self.capacity} must be at least the batch, {number}"
            )
        place = torch.arange(self._num_seen, self._num_seen + number) % self.capacity
        for key, value in fresh.items():
            kept = self._kept[key]
            kept[place.to(kept.device)] = value.to(kept.dtype)
        self._num_seen += number


def turned(batch: dict[str, Tensor], orientation: int) -> dict[str, Tensor]:
    """Return prepared samples as if the world had been turned or mirrored, z staying up.

    Distances, colours and features do not change.

    Args:
        batch: tensors of prepared samples, by their keys.
        orientation: below `ORIENTATIONS`; 0 changes nothing.
    """
    mirror_x, mirror_y, swap = (bool(orientation >> bit & 1) for bit in range(3))
    order = [1, 0, 2] if swap else [0, 1, 2]

    def vectors(values: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        sign = values.new_tensor([-1.0 if mirror_x else 1.0, -1.0 if mirror_y else 1.0, 1.0])
        return (values * sign)[..., order]

    def volume(values: Float[Tensor, "b c s s s"]) -> Float[Tensor, "b c s s s"]:
        mirrored = [axis for axis, one in ((2, mirror_x), (3, mirror_y)) if one]
        values = values.flip(mirrored)
        return values.transpose(2, 3) if swap else values

    result = dict(batch)
    for key in VOLUMES:
        result[key] = volume(batch[key])
    pairs = result["geometry"][:, VECTORS].unflatten(1, (2, 3)).movedim(2, -1)
    geometry = result["geometry"].clone()
    geometry[:, VECTORS] = vectors(pairs).movedim(-1, 2).flatten(1, 2)
    result["geometry"] = geometry
    for key in POINTS:
        result[key] = vectors(batch[key])
    return result
