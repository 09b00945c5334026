"""Spoiling exact 2.5D images the way decoders and generators do, to train what mends them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import ndimage

from data_pipeline.contract import Camera
from modules.geometry.nearest_pixel import nearest_pixel


@dataclass(frozen=True, slots=True, kw_only=True)
class Corruption:
    """How 2.5D images are spoilt.

    Args:
        clean_share: share of the samples that stay exact.
        coord_noise: least and greatest standard deviation of depth, world units; drawn
            log-uniformly. Half of it shifts whole views, the rest varies smoothly within a view.
        normal_noise: standard deviation of normals, per world unit of depth noise.
        drop_share: share of the samples that lose views.
        max_dropped: most views that a sample loses.
        blur_px: standard deviation of the blur of silhouettes at the greatest noise; it falls with
            the root of the noise.
        misaligned_share: share of the samples that are not exact whose views do not stand where
            their cameras say.
        misaligned_px: standard deviation of a view's shift within its image plane, in pixels.
        misaligned_deg: and of its turn about its viewing axis.
    """

    clean_share: float = 0.2
    coord_noise: Sequence[float] = (0.002, 0.04)
    normal_noise: float = 5.0
    drop_share: float = 0.3
    max_dropped: int = 2
    blur_px: float = 1.5
    misaligned_share: float = 0.0
    misaligned_px: float = 1.0
    misaligned_deg: float = 1.0


def corrupt(
    images: Float[ndarray, "m v 3 h w"],
    hit: Bool[ndarray, "v h w"],
    cameras: Sequence[Camera],
    settings: Corruption,
    rng: np.random.Generator,
) -> tuple[Float[ndarray, "m u 3 h w"], Bool[ndarray, "u h w"], tuple[Camera, ...]]:
    """Return spoilt images, their foreground, and the cameras that are left.

    Args:
        images: rgb, normal, coord in [-1, 1].
        hit: exact foreground.
        cameras: one per view.
        settings: how much of what.
        rng: the source of chance.
    """
    kept = np.arange(len(cameras))
    if rng.random() < settings.drop_share:
        count = int(rng.integers(1, settings.max_dropped + 1))
        kept = np.sort(rng.permutation(len(cameras))[: max(len(cameras) - count, 1)])
    images, hit = images[:, kept].copy(), hit[kept]
    cameras = tuple(cameras[index] for index in kept.tolist())
    if rng.random() < settings.clean_share:
        return images, hit, cameras
    if settings.misaligned_share and rng.random() < settings.misaligned_share:
        cameras = tuple(_misaligned(each, hit.shape[-1], settings, rng) for each in cameras)
    low, high = settings.coord_noise
    level = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    normal, coord = (np.moveaxis(images[m], 1, -1) for m in (1, 2))
    shape = coord.shape[:3]
    shift = rng.normal(0.0, 0.5 * level, (len(cameras), 1, 1))
    depth_noise = shift + level * (0.8 * _smooth(shape, rng) + 0.3 * rng.standard_normal(shape))
    axes = -np.stack([camera.matrix[:3, 2] for camera in cameras])[:, None, None]
    coord = coord + 2.0 * depth_noise[..., None] * axes
    for channel in range(3):
        noise = 0.8 * _smooth(shape, rng) + 0.6 * rng.standard_normal(shape)
        normal[..., channel] += settings.normal_noise * level * noise
    normal = normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-6)
    new_hit = _blurred(hit, settings.blur_px * (level / high) ** 0.5, rng)
    for view in range(len(cameras)):
        if not hit[view].any():
            continue
        row, column = nearest_pixel(hit[view])
        for values in (normal, coord, np.moveaxis(images[0], 1, -1)):
            values[view] = values[view][row, column]
    images[1], images[2] = np.moveaxis(normal, -1, 1), np.moveaxis(coord, -1, 1)
    background = np.array([1.0, 0.0, 0.0]).reshape(3, 1, 1, 1, 1)
    images = np.where(new_hit[None, :, None], images, background).astype(np.float32)
    return images, new_hit, cameras


def subsample(
    images: Float[ndarray, "m v 3 h w"],
    hit: Bool[ndarray, "v h w"],
    cameras: Sequence[Camera],
    corner: tuple[int, int],
) -> tuple[Float[ndarray, "m v 3 g g"], Bool[ndarray, "v g g"], tuple[Camera, ...]]:
    """Return one pixel of every 2 x 2 and the cameras that saw just those: exact, half the size.

    Args:
        images: rgb, normal, coord.
        hit: exact foreground.
        cameras: orthographic ones.
        corner: row and column, 0 or 1, of the pixels that are kept.

    Raises:
        ValueError: a camera is perspective: moving it would turn its rays.
    """
    row, column = corner
    size = hit.shape[-1]
    moved = []
    for camera in cameras:
        if camera.ortho_scale is None:
            raise ValueError(f"camera {camera.name} is perspective: only parallel rays thin out")
        # The pixel that is kept lies half a fine pixel from the middle of its 2 x 2.
        step = camera.ortho_scale / size
        moved.append(_moved(camera, (column - 0.5) * step, (0.5 - row) * step, 0.0))
    return images[..., row::2, column::2], hit[..., row::2, column::2], tuple(moved)


def _misaligned(
    camera: Camera, resolution_px: int, settings: Corruption, rng: np.random.Generator
) -> Camera:
    """Return a camera that stands beside the one that made an image."""
    width = camera.ortho_scale
    if width is None:
        assert camera.fov_deg is not None
        distance = np.linalg.norm(camera.matrix[:3, 3])
        width = 2.0 * distance * np.tan(np.radians(camera.fov_deg) / 2.0)
    x, y = rng.normal(0.0, settings.misaligned_px * width / resolution_px, 2)
    return _moved(camera, x, y, rng.normal(0.0, settings.misaligned_deg))


def _moved(camera: Camera, right: float, up: float, roll_deg: float) -> Camera:
    """Return a camera moved within its image plane and turned about its viewing axis."""
    cosine, sine = np.cos(np.radians(roll_deg)), np.sin(np.radians(roll_deg))
    step = np.eye(4)
    step[:2, :2], step[:2, 3] = [[cosine, -sine], [sine, cosine]], (right, up)
    return replace(camera, camera_to_world=(camera.matrix @ step).tolist())


def _smooth(shape: tuple[int, ...], rng: np.random.Generator) -> Float[ndarray, "v h w"]:
    """Return noise of unit variance that varies over a sixteenth of the image."""
    noise = ndimage.gaussian_filter(
        rng.standard_normal(shape), (0, shape[1] / 16, shape[2] / 16), mode="wrap"
    )
    return noise / noise.std()


def _blurred(
    hit: Bool[ndarray, "v h w"], sigma_px: float, rng: np.random.Generator
) -> Bool[ndarray, "v h w"]:
    """Return silhouettes blurred and cut again at a level that wavers."""
    if sigma_px < 0.3:
        return hit
    soft = ndimage.gaussian_filter(hit.astype(np.float64), (0, sigma_px, sigma_px))
    return soft > np.clip(0.5 + 0.15 * _smooth(hit.shape, rng), 0.1, 0.9)
