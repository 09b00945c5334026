"""What was observed, as low-resolution volumes that a 3D network reads. Axis order is x, y, z."""

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from modules.geometry.classical_field import ClassicalField

GEOMETRY_CHANNELS = 9
"""Presence, mean offset (3), mean normal (3), free space, noise: nothing of it comes from rgb."""

COLOUR_CHANNELS = 4
"""Presence and mean colour (3), around 0."""

VOLUME_HALF_SIDE = 0.55
"""Volumes span [-VOLUME_HALF_SIDE, VOLUME_HALF_SIDE]^3: the unit cube and a margin."""

NOISE_SCALE = 0.05
"""World units of noise that are written as 1."""


def evidence_volumes(
    field: ClassicalField, side: int
) -> tuple[Float[ndarray, "9 s s s"], Float[ndarray, "4 s s s"]]:
    """Return the geometry volume and the colour volume of a field's observation.

    Args:
        field: the classical field.
        side: voxels along a side.
    """
    observation = field.observation
    size = 2.0 * VOLUME_HALF_SIDE / side
    place = (observation.position + VOLUME_HALF_SIDE) / size
    index = np.clip(place.astype(np.int64), 0, side - 1)
    flat = np.ravel_multi_index(tuple(index.T), (side, side, side))
    count = np.bincount(flat, minlength=side**3)

    def mean(values: Float[ndarray, "n 3"]) -> Float[ndarray, "3 s3"]:
        sums = [np.bincount(flat, column, minlength=side**3) for column in values.T]
        return np.stack(sums) / np.maximum(count, 1)

    centre = (np.arange(side) + 0.5) * size - VOLUME_HALF_SIDE
    centres = np.stack(np.meshgrid(centre, centre, centre, indexing="ij"), axis=-1).reshape(-1, 3)
    # Points per voxel, in layers that cross it: the same at every resolution of the images.
    presence = np.log1p(count * (observation.spacing / size) ** 2)[None]
    free = field.free_space(centres)[None] / field.carve_band
    noise = np.full((1, side**3), field.noise / NOISE_SCALE)
    geometry = [presence, mean(place - index - 0.5), mean(observation.normal), free, noise]
    colour = [presence, mean(2.0 * observation.colour - 1.0) * (count > 0)]
    shape = (-1, side, side, side)
    return (
        np.concatenate(geometry).astype(np.float32).reshape(shape),
        np.concatenate(colour).astype(np.float32).reshape(shape),
    )
