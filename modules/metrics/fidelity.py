"""What is lost of 2.5D images on their way through an autoencoder. Formulas: docs/metrics.md."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy.ndimage import binary_dilation, binary_erosion

from data_pipeline.contract import MODALITIES, Camera
from modules.geometry.lift import HitRule, lift
from modules.metrics.appearance import psnr
from modules.metrics.coherence import (
    WORST_COHERENCE,
    ViewImages,
    angles_deg,
    coherence,
    excess,
)

BAND_PX = 2
"""Pixels this near to the silhouette, on either side, are its band; `inside` is the rest of it."""

FIDELITY_FAILURES: dict[str, float] = {
    f"{key}_{region}": worst
    for region in ("inside", "band")
    for key, worst in {
        "decoded_psnr": 0.0,
        "decoded_normal_deg": 90.0,
        "decoded_normal_p95_deg": 90.0,
        "decoded_position": 1.0,
        "decoded_depth": 1.0,
        "decoded_mask_iou": 0.0,
    }.items()
} | {
    "decoded_mask_iou": 0.0,
    **{f"excess_{key}": worst for key, worst in WORST_COHERENCE.items()},
}
"""What a failed pair counts as, see modules/metrics/scoring.py."""


def fidelity(
    images: Float[ndarray, "m v 3 h w"],
    decoded: Float[ndarray, "m v 3 h w"],
    hit: Bool[ndarray, "v h w"],
    cameras: Sequence[Camera],
) -> dict[str, float]:
    """Return what a round trip through an autoencoder changed.

    Args:
        images: true rgb, normal and coord in [-1, 1].
        decoded: the same, back from the latents.
        hit: where the true images show the asset.
        cameras: of the views.

    Returns:
        `decoded_*` for the inside and the band of the silhouettes, the overlap of the silhouettes
        that the hit rule finds, and `excess_*` of every figure of coherence. Coherence is measured
        where the asset is, not where the rule finds it: that leaves out just the pixels whose coord
        is off its ray.
    """
    found = lift(decoded, cameras).hit
    true, back = (view_images(each, hit, cameras) for each in (images, decoded))
    figures = {"decoded_mask_iou": _overlap(hit, found, np.ones_like(hit))}
    colour = ((true.rgb - back.rgb) ** 2).mean(axis=-1)
    angle = angles_deg(true.normal.reshape(-1, 3), back.normal.reshape(-1, 3)).reshape(hit.shape)
    away = np.linalg.norm(true.coord - back.coord, axis=-1)
    depth = np.abs(_depth(true) - _depth(back))
    for name, region in silhouette_regions(hit).items():
        shown = region & hit
        figures |= {
            f"decoded_psnr_{name}": psnr(colour[region].mean()) if region.any() else float("nan"),
            f"decoded_normal_deg_{name}": _mean(angle[shown]),
            f"decoded_normal_p95_deg_{name}": _p95(angle[shown]),
            f"decoded_position_{name}": _mean(away[shown]),
            f"decoded_depth_{name}": _mean(depth[shown]),
            f"decoded_mask_iou_{name}": _overlap(hit, found, region),
        }
    above = excess(coherence(back), coherence(true))
    return figures | {f"excess_{key}": value for key, value in above.items()}


def latent_statistics(latents: Float[ndarray, "m v c h w"]) -> dict[str, float]:
    """Return `latent_mean_*` and `latent_std_*` of each modality, over all of its values."""
    return {
        f"latent_{statistic}_{modality}": float(getattr(np, statistic)(values))
        for modality, values in zip(MODALITIES, latents, strict=True)
        for statistic in ("mean", "std")
    }


def view_images(
    images: Float[ndarray, "m v 3 h w"], hit: Bool[ndarray, "v h w"], cameras: Sequence[Camera]
) -> ViewImages:
    """Return images in [-1, 1] in the units of figures: sRGB, unit normals, world positions."""
    rgb, normal, coord = np.moveaxis(images.astype(np.float64), 2, -1)
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    return ViewImages(
        cameras,
        rgb=np.clip(rgb / 2.0 + 0.5, 0.0, 1.0),
        normal=normal / np.maximum(length, 1e-9),
        coord=coord / 2.0,
        hit=hit,
    )


def made_images(images: Float[ndarray, "m v 3 h w"], cameras: Sequence[Camera]) -> ViewImages:
    """Return images that a network made, in the units of figures.

    Their foreground is where normals are long, by the hit rule's measure: its other conditions
    would leave out what `coherence` is to find.
    """
    length = np.linalg.norm(images[MODALITIES.index("normal")], axis=1)
    return view_images(images, length > HitRule().normal_length, cameras)


def silhouette_regions(hit: Bool[ndarray, "v h w"]) -> dict[str, Bool[ndarray, "v h w"]]:
    """Return `inside` and `band` of the silhouettes; the band lies on both sides of the outline."""
    around = np.ones((1, 3, 3), dtype=bool)
    inside = binary_erosion(hit, around, iterations=BAND_PX, border_value=1)
    return {
        "inside": inside,
        "band": binary_dilation(hit, around, iterations=BAND_PX) & ~inside,
    }


def _depth(images: ViewImages) -> Float[ndarray, "v h w"]:
    """Return the distance along each view's axis, which alone the lift takes from a coord."""
    side = images.hit.shape[-1]
    pairs = zip(images.cameras, images.coord, strict=True)
    return np.stack([camera.project(coord, side)[1] for camera, coord in pairs])


def _overlap(
    a: Bool[ndarray, "v h w"], b: Bool[ndarray, "v h w"], region: Bool[ndarray, "v h w"]
) -> float:
    """Return intersection over union within a region."""
    union = int(((a | b) & region).sum())
    return float((a & b & region).sum() / union) if union else float("nan")


def _mean(values: Float[ndarray, " n"]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _p95(values: Float[ndarray, " n"]) -> float:
    return float(np.percentile(values, 95)) if len(values) else float("nan")
