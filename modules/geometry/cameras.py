"""Cameras from the numbers that a batch carries."""

import math

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from data_pipeline.contract import Camera


def cameras_from_arrays(
    camera_to_world: Float[ndarray, "v 4 4"],
    ortho_scale: Float[ndarray, " v"],
    fov_deg: Float[ndarray, " v"],
) -> tuple[Camera, ...]:
    """Return the cameras of one sample; NaN in `ortho_scale` means perspective.

    Rotations are made exact again: batches hold them in single precision.
    """
    cameras = []
    for index, matrix in enumerate(camera_to_world.astype(np.float64)):
        left, _, right = np.linalg.svd(matrix[:3, :3])
        exact = matrix.copy()
        exact[:3, :3] = left @ right
        scale, angle = float(ortho_scale[index]), float(fov_deg[index])
        orthographic = not math.isnan(scale)
        cameras.append(
            Camera(
                name=f"view{index}",
                camera_to_world=tuple(tuple(row) for row in exact.tolist()),
                projection="orthographic" if orthographic else "perspective",
                ortho_scale=scale if orthographic else None,
                fov_deg=None if orthographic else angle,
            )
        )
    return tuple(cameras)
