"""All figures of one predicted mesh, and their summary over a set, failures included."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.contract import UserError
from modules.geometry.mesh import Mesh
from modules.metrics.appearance import check_views, compare_appearance
from modules.metrics.fidelity import FIDELITY_FAILURES
from modules.metrics.geometry import (
    F_SCORE_THRESHOLDS,
    NUM_SAMPLES,
    MeshSurface,
    Surface,
    compare_surfaces,
)
from modules.metrics.lpips import SMALLEST_PX, load_lpips
from modules.metrics.mesh_quality import mesh_quality
from modules.metrics.uv_quality import uv_quality
from modules.metrics.volume import volume_iou

FAILURE_FIGURES: dict[str, float] = {
    "chamfer_l1": 1.0,
    "chamfer_l2": 1.0,
    "normal_consistency": 0.0,
    "flipped_normals": 1.0,
    "spurious_components": 1.0,
    "volume_iou": 0.0,
    **{
        f"{kind}_{threshold:g}": 0.0
        for threshold in F_SCORE_THRESHOLDS
        for kind in ("f_score", "precision", "recall", "outer_recall")
    },
    "psnr_masked": 0.0,
    "psnr_unmasked": 0.0,
    "ssim_masked": 0.0,
    "ssim_unmasked": 0.0,
    "lpips_masked": 1.0,
    "lpips_unmasked": 1.0,
    "mask_iou": 0.0,
    "input_view_psnr_masked": 0.0,
    "input_view_psnr_unmasked": 0.0,
    "input_view_ssim_masked": 0.0,
    "input_view_ssim_unmasked": 0.0,
    "input_view_mask_iou": 0.0,
    "input_view_normal_deg": 90.0,
    "excess_input_view_normal_deg": 90.0,
    "watertight": 0.0,
    "manifold": 0.0,
    "uv_coverage": 0.0,
    "uv_overlap": 1.0,
    **FIDELITY_FAILURES,
}
"""What a failed pair counts as, unless another is worse: see `failure_figure`. Scores of nought,
angles of 90 degrees, distances of the cube's side, one spurious component."""

COUNTS = (
    "faces",
    "degenerate_faces",
    "border_edges",
    "tangled_edges",
    "pinched_vertices",
    "self_intersecting_faces",
    "components",
    "genus",
)
"""Figures that say what a mesh is like: a failed pair has none."""

FIGURE_KEYS = (*FAILURE_FIGURES, *COUNTS)
"""Every figure that a pair can have."""


MAX_RESOLUTION_PX, MAX_SAMPLES = 4096, 10_000_000
"""More would take tens of GB of memory."""


def failure_figure(key: str, found: Iterable[float]) -> float:
    """Return what a failed pair counts as beside other pairs: never better than the worst of them.

    Args:
        key: of the figure.
        found: its values of the pairs that were scored, all finite.

    Returns:
        The value of `FAILURE_FIGURES`, or the worst of `found` if that is worse. NaN for a figure
        that a failed pair does not have.
    """
    if key not in FAILURE_FIGURES:
        return math.nan
    worst = FAILURE_FIGURES[key]
    return max([worst, *found]) if worst > 0.0 else min([worst, *found])  # nought is of scores


def check_seed(seed: int) -> None:
    """Raise UserError unless every generator of random numbers takes it."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} must be at least 0 and below 2^32")


def check_resolution(resolution_px: int) -> None:
    """Raise UserError if views of this side would fill the memory."""
    if resolution_px > MAX_RESOLUTION_PX:
        raise UserError(f"resolution_px={resolution_px} is too large: give {MAX_RESOLUTION_PX}")


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """How figures are taken; all of it is told in the report.

    Args:
        num_samples: samples by area on each surface.
        num_views: unseen views for the image figures.
        resolution_px: side of those views.
        seed: of the samples.
        lpips_weights: see `load_lpips`; None leaves its figures out.
        frame: in which distances are taken.
        distances: how.
        cameras, light, background, mask: of the image figures.
    """

    num_samples: int = NUM_SAMPLES
    num_views: int = 8
    resolution_px: int = 192
    seed: int = 0
    lpips_weights: str | None = None
    frame: str = "the truth fills the unit cube; the prediction moves with it, no other alignment"
    distances: str = "of samples by area to the other surface, exact"
    cameras: str = "unseen_cameras: orthographic, around the unit cube"
    light: str = "base colour, unlit"
    background: str = "white and black, mean of both"
    mask: str = "union of both silhouettes, grown by one pixel"

    def __post_init__(self) -> None:
        if not 1000 <= self.num_samples <= MAX_SAMPLES:
            raise UserError(
                f"num_samples={self.num_samples} must be at least 1000 and at most {MAX_SAMPLES}"
            )
        check_seed(self.seed)
        check_views(self.num_views, self.resolution_px)
        check_resolution(self.resolution_px)
        if self.lpips_weights is not None and self.resolution_px < SMALLEST_PX:
            raise UserError(
                f"resolution_px={self.resolution_px} is too small for LPIPS: give at least "
                f"{SMALLEST_PX}, or lpips_weights=null"
            )


def score(
    predicted: Mesh, surface: Surface, reference: Mesh | None, options: ScoringOptions
) -> dict[str, float]:
    """Return every figure of a predicted mesh.

    Args:
        predicted: mesh in the frame where the reference fills the unit cube.
        surface: the reference's surface in that frame.
        reference: the reference mesh; without it there are no figures of unseen views or volume.
        options: how figures are taken.

    Raises:
        UserError: the predicted mesh has no area.
    """
    figures = compare_surfaces(
        MeshSurface(predicted.vertices, predicted.faces),
        surface,
        num_samples=options.num_samples,
        seed=options.seed,
    )
    quality = mesh_quality(predicted.vertices, predicted.faces)
    figures |= quality | uv_quality(predicted)
    if reference is None:
        return figures
    weights = options.lpips_weights
    figures |= compare_appearance(
        predicted,
        reference,
        num_views=options.num_views,
        resolution_px=options.resolution_px,
        lpips=None if weights is None else load_lpips(weights),
    )
    closed = (
        quality["watertight"] and mesh_quality(reference.vertices, reference.faces)["watertight"]
    )
    figures["volume_iou"] = volume_iou(predicted, reference) if closed else float("nan")
    return figures


def summarise(
    pairs: Iterable[Mapping[str, float]],
    num_failed: int = 0,
    partly: Sequence[Mapping[str, float]] = (),
) -> dict[str, dict[str, float]]:
    """Return median, mean, p10 and p90 of every figure over a set.

    Args:
        pairs: the figures of each scored pair; a figure that is NaN does not exist for its pair.
        num_failed: pairs without figures; each enters those of `FAILURE_FIGURES` that the others
            have (those of meshes, LPIPS left out, when nothing was scored) at their worst.
        partly: figures of failed pairs of which some are known; the others enter in the same way.
    """
    values: dict[str, list[float]] = {}
    for figures in (*pairs, *partly):
        for key, value in figures.items():
            if math.isfinite(value):
                values.setdefault(key, []).append(value)
    if not values and num_failed:
        optional = ("input_view_", "lpips_", "decoded_", "excess_")
        values = {key: [] for key in FAILURE_FIGURES if not key.startswith(optional)}
    for key, found in values.items():
        if key in FAILURE_FIGURES:
            unknown = sum(not math.isfinite(each.get(key, math.nan)) for each in partly)
            found.extend([failure_figure(key, found)] * (num_failed + unknown))
    return {
        key: {
            "median": float(np.median(found)),
            "mean": float(np.mean(found)),
            "p10": float(np.percentile(found, 10)),
            "p90": float(np.percentile(found, 90)),
        }
        for key, found in values.items()
    }
