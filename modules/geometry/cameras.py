"""Cameras from the numbers that a batch carries, and what they have in their images."""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from data_pipeline.contract import Camera
from modules.geometry.rasterizer import half_width


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


def project_inside(
    camera: Camera, points: Float[ndarray, "p 3"], resolution_px: int
) -> tuple[Int[ndarray, " q"], Float[ndarray, "q 2"], Float[ndarray, " q"]]:
    """Return the points that lie in a camera's image: others it says nothing about.

    Args:
        camera: the view.
        points: world positions.
        resolution_px: side of the image.

    Returns:
        Indices of the points, their pixel coordinates (x, y), whose integer parts are column and
        row, and their depths in world units, positive.
    """
    pixels, depth = camera.project(points, resolution_px)
    seen = ((pixels >= 0) & (pixels < resolution_px)).all(axis=1) & (depth > 0)
    inside = np.flatnonzero(seen)
    return inside, pixels[inside], depth[inside]


def project_points(
    points: Float[Tensor, "p 3"], camera: Camera
) -> tuple[Float[Tensor, " p"], Float[Tensor, " p"], Float[Tensor, " p"]]:
    """Return where world points are in an image whose sides are 1, y down, and their depths."""
    matrix = torch.tensor(camera.camera_to_world, dtype=points.dtype, device=points.device)
    right, up, back, eye = matrix[:3].T
    dx, dy, dz = (points - eye).unbind(dim=1)
    # No matrix product: that may run in TF32, far too coarse here.
    x, y, behind = (dx * axis[0] + dy * axis[1] + dz * axis[2] for axis in (right, up, back))
    span = 2.0 * half_width(camera) * (1.0 if camera.projection == "orthographic" else -behind)
    return x / span + 0.5, 0.5 - y / span, -behind


def ray_per_depth(camera: Camera, resolution_px: int) -> Float[ndarray, "h w 3"]:
    """Return how a point moves along its pixel's ray when its depth grows by one.

    Args:
        camera: the view.
        resolution_px: side of the image.
    """
    _, directions = camera.rays(resolution_px)
    return directions / (directions @ -camera.matrix[:3, 2])[..., None]
