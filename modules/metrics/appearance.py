"""Figures of base colour: unlit views of two meshes, compared pixel by pixel."""

import math

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy.ndimage import binary_dilation
from skimage.metrics import structural_similarity

from data_pipeline.contract import ORTHO_CAMERA_DISTANCE, Camera, UserError, look_at_origin
from modules.geometry.mesh import Mesh
from modules.geometry.rasterize import Views, render_mesh
from modules.metrics.lpips import Lpips, lpips_figures

BACKGROUNDS = (1.0, 0.0)
"""Greys that both sides are shown on."""

PSNR_CEILING_DB = 60.0
"""Given for equal images, whose PSNR is infinite; 8 bit images differ by more or not at all."""


def check_views(num_views: int, resolution_px: int) -> None:
    """Raise UserError unless there are views to look at, of a size that shows something."""
    if num_views < 1:
        raise UserError(f"num_views={num_views} shows nothing: give at least 1")
    if resolution_px < 16:
        raise UserError(f"resolution_px={resolution_px} is too small: give at least 16")


def unseen_cameras(count: int) -> tuple[Camera, ...]:
    """Return cameras that look at the unit cube from directions no view layout uses.

    Azimuths follow the golden angle, elevations change between above and below: never 0 or 90
    degrees. The images hold the whole cube, whichever way it is turned.
    """
    cameras = []
    for i in range(count):
        azimuth = (25.0 + i * 137.508) % 360.0
        elevation = (35.0, -20.0, 15.0, -45.0)[i % 4]
        cameras.append(
            Camera(
                name=f"unseen{i:02d}",
                camera_to_world=look_at_origin(azimuth, elevation, ORTHO_CAMERA_DISTANCE),
                projection="orthographic",
                ortho_scale=math.sqrt(3.0) * 1.02,
            )
        )
    return tuple(cameras)


def compare_appearance(
    predicted: Mesh,
    reference: Mesh,
    *,
    num_views: int = 8,
    resolution_px: int = 192,
    lpips: Lpips | None = None,
) -> dict[str, float]:
    """Return `image_figures` over unseen views.

    Args:
        predicted: mesh in the frame where the reference fits the unit cube.
        reference: the truth, in the same frame.
        num_views: how many views, see `unseen_cameras`.
        resolution_px: side of the views.
        lpips: the network; None leaves its figures out.
    """
    cameras = unseen_cameras(num_views)
    views = [render_mesh(mesh, cameras, resolution_px) for mesh in (predicted, reference)]
    return image_figures(views[0].rgb, views[0].hit, views[1].rgb, views[1].hit, lpips)


def compare_with_views(
    predicted: Views, rgb: Float[ndarray, "v h w 3"], hit: Bool[ndarray, "v h w"]
) -> dict[str, float]:
    """Return `image_figures` of a mesh against given views, under the keys `input_view_*`.

    Args:
        predicted: the mesh, rendered from the views' cameras.
        rgb: sRGB in [0, 1] on white.
        hit: where the views show the asset.
    """
    figures = image_figures(predicted.rgb, predicted.hit, rgb, hit)
    return {f"input_view_{key}": value for key, value in figures.items()}


def image_figures(
    predicted_rgb: Float[ndarray, "v h w 3"],
    predicted_hit: Bool[ndarray, "v h w"],
    reference_rgb: Float[ndarray, "v h w 3"],
    reference_hit: Bool[ndarray, "v h w"],
    lpips: Lpips | None = None,
) -> dict[str, float]:
    """Return how far images agree over all views, masked and not, and how far silhouettes do.

    Every figure is the mean over white and black backgrounds: on one alone, an asset of its colour
    would agree with any shape. The mask is the union of both silhouettes, grown by one pixel. Keys:
    `psnr_*` in dB (the squared error is pooled over views and backgrounds before the logarithm),
    `ssim_*` (Wang et al., 2004: Gaussian window of sigma 1.5, mean of its map), `lpips_*` (see
    `lpips_figures`) and `mask_iou`.
    """
    union = predicted_hit | reference_hit
    mask = binary_dilation(union, structure=np.ones((1, 3, 3), dtype=bool))
    overlap = (predicted_hit & reference_hit).sum() / max(int(union.sum()), 1)
    pairs = [
        (over(predicted_rgb, predicted_hit, grey), over(reference_rgb, reference_hit, grey))
        for grey in BACKGROUNDS
    ]
    error = np.mean([((a - b) ** 2).mean(axis=-1) for a, b in pairs], axis=0)
    similarity = np.mean(
        [[ssim_map(*views) for views in zip(*pair, strict=True)] for pair in pairs], axis=0
    )
    figures = {
        "psnr_masked": psnr(error[mask].mean() if mask.any() else 0.0),
        "psnr_unmasked": psnr(error.mean()),
        "ssim_masked": float(similarity[mask].mean()) if mask.any() else 1.0,
        "ssim_unmasked": float(similarity.mean()),
        "mask_iou": float(overlap),
    }
    if lpips is not None:
        found = [lpips_figures(lpips, *pair, mask) for pair in pairs]
        figures |= {key: float(np.mean([each[key] for each in found])) for key in found[0]}
    return figures


def over(
    rgb: Float[ndarray, "v h w 3"], hit: Bool[ndarray, "v h w"], grey: float
) -> Float[ndarray, "v h w 3"]:
    """Return views on a background of one grey, in [0, 1]."""
    return np.where(hit[..., None], rgb, grey)


def ssim_map(
    first: Float[ndarray, "h w 3"], second: Float[ndarray, "h w 3"]
) -> Float[ndarray, "h w"]:
    """Return the structural similarity around every pixel of two images in [0, 1]."""
    similarity = structural_similarity(
        first, second, data_range=1.0, channel_axis=-1, full=True,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    return np.asarray(similarity[1]).mean(axis=-1)


def psnr(mean_squared_error: float) -> float:
    """Return the peak signal-to-noise ratio in dB of images in [0, 1], at most the ceiling."""
    if mean_squared_error <= 10.0 ** (-PSNR_CEILING_DB / 10.0):
        return PSNR_CEILING_DB
    return float(-10.0 * np.log10(mean_squared_error))
