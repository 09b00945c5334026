"""Quality of a sample, measured from its own passes. Numpy only: tested without Blender.

Smooth shading makes shading normals differ from the gradient of coord by 10 degrees on the mean, so
the figures about normals are medians and shares of flips, never tight means (docs/assets.md).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.contract import Camera, QaLimits
from data_pipeline.render.failures import AssetFailure

BEYOND_HORIZON = 0.1
"""Cosine by which a smooth normal may lean away from the camera at a silhouette."""

NORMAL_GRID = 256
"""Normals are compared with coord's gradient at every n-th pixel, so many along a side."""

CONTINUOUS_PX = 3.0
"""Neighbouring pixels whose positions are further apart than so many pixel widths are an edge."""


def view_figures(
    *,
    camera: Camera,
    resolution_px: int,
    corner: tuple[int, int],
    rgb: NDArray[np.uint8],
    alpha: NDArray[np.uint8],
    hit: NDArray[np.bool_],
    points: NDArray[np.floating],
    normals: NDArray[np.floating],
) -> dict[str, Any]:
    """Measure one view.

    Args:
        camera: of the view.
        resolution_px: side of the whole image, of which the arrays are a window.
        corner: row and column of the window's first pixel.
        rgb: `(h, w, 3)`, base colour, sRGB.
        alpha: `(h, w)`.
        hit: `(h, w)`.
        points: `(n, 3)`, world: the position at every pixel that is `hit`, in rows from the top.
        normals: `(n, 3)`, world, unit: the normals there.

    Returns:
        Plain numbers by name; those about normals are None where nothing can be told.
    """
    pixels = resolution_px**2
    found: dict[str, Any] = {
        "coverage": float(alpha.sum() / 255.0 / pixels),
        "hit_share": float(hit.sum() / pixels),
        "border_share": _border_share(alpha, corner, resolution_px),
        "max_abs_coord": float(np.abs(points).max(initial=0.0)),
    }
    channels = [rgb[..., channel][hit] for channel in range(3)]
    found["darkest"] = [int(values.min(initial=255)) for values in channels]
    found["brightest"] = [int(values.max(initial=0)) for values in channels]
    pink = (channels[0] == 255) & (channels[1] == 0) & (channels[2] == 255)
    found["pink_share"] = float(pink.mean()) if len(pink) else 0.0
    rows, columns = np.nonzero(hit)
    centres = np.stack([columns + corner[1], rows + corner[0]], axis=-1) + 0.5
    projected, _ = camera.project(points, resolution_px)
    found["reprojection_px"] = float(np.abs(projected - centres).max(initial=0.0))
    toward = _toward_camera(camera, points)
    away = np.einsum("nc,nc->n", normals, toward) < -BEYOND_HORIZON
    found["away_share"] = float(away.mean()) if len(away) else 0.0
    step = max(1, resolution_px // NORMAL_GRID)
    cosine = _gradient_cosine(hit, points, normals, toward, step)
    found["normal_pixels"] = len(cosine)
    found["normal_angle_deg"] = _median_angle(cosine)
    found["flip_share"] = float((cosine < 0.0).mean()) if len(cosine) else None
    return found


def summarise(views: Sequence[dict[str, Any]], missing_textures: Sequence[str]) -> dict[str, Any]:
    """Return an asset's figures: per view where they differ by nature, else the worst view's."""
    angles = [view["normal_angle_deg"] for view in views if view["normal_pixels"] >= 64]
    weights = np.array([view["normal_pixels"] for view in views], dtype=np.float64)
    flips = np.array([view["flip_share"] or 0.0 for view in views])
    spread = np.max([view["brightest"] for view in views], axis=0).astype(int)
    spread -= np.min([view["darkest"] for view in views], axis=0).astype(int)
    hits = np.array([view["hit_share"] for view in views])
    pink = np.array([view["pink_share"] for view in views])
    summary: dict[str, Any] = {
        "coverage": [round(view["coverage"], 6) for view in views],
        "hit_share": [round(view["hit_share"], 6) for view in views],
        "colour_spread": float(spread.max()),
        "pink_share": float((pink * hits).sum() / max(hits.sum(), 1e-12)),
        "missing_textures": sorted(missing_textures),
        "normal_angle_deg": float(np.median(angles)) if angles else 0.0,
        "flip_share": float((flips * weights).sum() / max(weights.sum(), 1.0)),
    }
    for name in ("border_share", "max_abs_coord", "reprojection_px", "away_share", "depth_error"):
        summary[name] = float(max(view[name] for view in views))
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in summary.items()}


def judge(figures: dict[str, Any], limits: QaLimits) -> list[str]:
    """Return the soft flags of an asset, or raise for what makes a sample worthless.

    Raises:
        AssetFailure: `blank`, `clipped`, `nonfinite` or `missing_texture`.
    """
    numbers = [v for value in figures.values() for v in np.ravel(value) if not isinstance(v, str)]
    if not np.isfinite(np.array(numbers, dtype=np.float64)).all():
        raise AssetFailure("nonfinite", "a quality figure is NaN or infinite")
    largest = max(figures["hit_share"])
    if largest < limits.min_hit_share:
        raise AssetFailure("blank", f"the view that shows most of it hits {largest:.4%} of pixels")
    if len(figures["missing_textures"]) > limits.max_missing_textures:
        names = ", ".join(figures["missing_textures"][:5])
        raise AssetFailure("missing_texture", f"images that are not there: {names}")
    if figures["border_share"] > limits.max_border_share:
        share = figures["border_share"]
        raise AssetFailure("clipped", f"it covers {share:.2%} of the border of a view")
    if figures["max_abs_coord"] > limits.max_abs_coord:
        reach = figures["max_abs_coord"]
        raise AssetFailure("clipped", f"a position reaches {reach:.4f}, beyond the unit cube")
    soft = {
        "single_colour": figures["colour_spread"] < limits.min_colour_spread,
        "pink": figures["pink_share"] > limits.max_pink_share,
        "normals_away": figures["away_share"] > limits.max_away_share,
        "reprojection": figures["reprojection_px"] > limits.max_reprojection_px,
        "normal_angle": figures["normal_angle_deg"] > limits.max_normal_angle_deg,
        "normal_flips": figures["flip_share"] > limits.max_flip_share,
    }
    return [name for name, tripped in soft.items() if tripped]


def _border_share(alpha: NDArray[np.uint8], corner: tuple[int, int], resolution_px: int) -> float:
    """Return the share of the whole image's outermost pixels that are covered."""
    top, left = corner
    bottom, right = top + alpha.shape[0], left + alpha.shape[1]
    covered = 0
    if top == 0:
        covered += np.count_nonzero(alpha[0])
    if bottom == resolution_px:
        covered += np.count_nonzero(alpha[-1])
    if left == 0:
        covered += np.count_nonzero(alpha[:, 0])
    if right == resolution_px:
        covered += np.count_nonzero(alpha[:, -1])
    return covered / (4.0 * resolution_px)


def _toward_camera(camera: Camera, points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the unit vectors from points to the camera, `(n, 3)`."""
    if camera.projection == "orthographic":
        return np.broadcast_to(camera.matrix[:3, 2], points.shape)
    toward = camera.matrix[:3, 3] - points
    return toward / np.linalg.norm(toward, axis=-1, keepdims=True)


def _gradient_cosine(
    hit: NDArray[np.bool_],
    points: NDArray[np.floating],
    normals: NDArray[np.floating],
    toward: NDArray[np.floating],
    step: int,
) -> NDArray[np.floating]:
    """Return the cosines between shading normals and the surface that coord itself draws.

    Taken at every `step`-th pixel between it and its neighbours to the right and below, where all
    three are hit and no edge runs between them.
    """
    index = np.full(hit.shape, -1)
    index[hit] = np.arange(len(points))
    first, second = slice(None, -1, step), slice(1, None, step)
    here, right, below = index[first, first], index[first, second], index[second, first]
    whole = (here >= 0) & (right >= 0) & (below >= 0)
    here, right, below = here[whole], right[whole], below[whole]
    across, down = points[right] - points[here], points[below] - points[here]
    lengths = np.sqrt([np.einsum("nc,nc->n", side, side) for side in (across, down)])
    if not lengths.size:
        return np.zeros(0)
    smooth = lengths.max(axis=0) < CONTINUOUS_PX * np.median(lengths)
    here = here[smooth]
    face = np.cross(down[smooth], across[smooth])
    length = np.sqrt(np.einsum("nc,nc->n", face, face))
    away = np.einsum("nc,nc->n", face, toward[here]) < 0.0
    cosine = np.einsum("nc,nc->n", face, normals[here])
    return np.where(away, -cosine, cosine) / np.maximum(length, 1e-30)


def _median_angle(cosine: NDArray[np.floating]) -> float | None:
    if not len(cosine):
        return None
    return float(np.degrees(np.arccos(np.clip(np.median(cosine), -1.0, 1.0))))
