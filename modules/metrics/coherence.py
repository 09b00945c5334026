"""Do the images of one asset agree: modalities with each other, and views with each other?

A 2.5D latent claims that rgb, normal and coord of all views show one object. None of these figures
needs a truth, but each has a floor (smooth shading, pixels of finite size): what counts is the
excess over the same figure on the true render, see `excess`. Formulas: docs/metrics.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy.ndimage import binary_dilation, distance_transform_edt

from data_pipeline.contract import Camera
from modules.geometry.rasterize import Views

SAME_SURFACE = 0.05
"""World units: points nearer than this along a view's axis are taken for one surface point."""

CONTINUOUS_PX = 3.0
"""Neighbouring pixels whose positions are further apart than so many pixel widths are an edge."""

RGB_EDGE = 0.1
"""Difference of neighbouring pixels in any channel, of [0, 1], that makes an edge."""

EDGE_REACH = 0.05
"""Share of the image's side at which the distance between edges is cut off."""


WORST_COHERENCE = {
    "normal_coord_deg": 90.0,
    "cross_view_position": 1.0,
    "cross_view_normal_deg": 90.0,
    "cross_view_rgb": 1.0,
    "cross_view_conflict": 1.0,
    "reprojection_px": 100.0,
    "edge_distance_px": 100.0,
}
"""What images count as that show nothing to measure a figure on, though the true ones do."""


@dataclass(frozen=True)
class ViewImages:
    """The images of one asset.

    Args:
        cameras: of the views.
        rgb: sRGB in [0, 1], on white.
        normal: world, unit where `hit`.
        coord: world positions, meaningful where `hit`.
        hit: where a view shows the asset.
    """

    cameras: Sequence[Camera]
    rgb: Float[ndarray, "v h w 3"]
    normal: Float[ndarray, "v h w 3"]
    coord: Float[ndarray, "v h w 3"]
    hit: Bool[ndarray, "v h w"]


def coherence(images: ViewImages) -> dict[str, float]:
    """Return every figure of how far the images agree; a lower one is better.

    Returns:
        `normal_coord_deg` (a), `cross_view_position`, `cross_view_normal_deg`, `cross_view_rgb`,
        `cross_view_conflict` (b), `reprojection_px` (c), `edge_distance_px` (d). NaN where the
        images hold nothing that could tell: no pixel is hit, or no two views share a point.
    """
    return {
        "normal_coord_deg": _normal_coord_deg(images),
        **_cross_view(images),
        "reprojection_px": _reprojection_px(images),
        "edge_distance_px": _edge_distance_px(images),
    }


def mesh_normal_deg(
    mesh: Views, normal: Float[ndarray, "v h w 3"], hit: Bool[ndarray, "v h w"]
) -> float:
    """Return the mean angle between a mesh's shading normals and those of images (e).

    Args:
        mesh: rendered from the images' cameras.
        normal: world, unit where `hit`.
        hit: where the images show the asset; compared where the mesh is hit as well.
    """
    both = mesh.hit & hit
    return _mean(angles_deg(mesh.normal[both], normal[both]))


def excess(figures: Mapping[str, float], true: Mapping[str, float]) -> dict[str, float]:
    """Return by how much figures exceed those of the true render of the same asset.

    NaN where the true render has none; the worst where it alone has one.
    """
    return {
        key: WORST_COHERENCE[key]
        if np.isnan(value) and not np.isnan(true[key])
        else value - true[key]
        for key, value in figures.items()
    }


# --------------------------------------------------------------------------------- (a) one view


def _normal_coord_deg(images: ViewImages) -> float:
    """Mean angle between normals and the surface that coord draws, edges left out."""
    angles = []
    for camera, coord, normal, hit in _each_view(images):
        here, right, below = coord[:-1, :-1], coord[:-1, 1:], coord[1:, :-1]
        whole = hit[:-1, :-1] & hit[:-1, 1:] & hit[1:, :-1]
        across, down = (right - here)[whole], (below - here)[whole]
        lengths = np.stack([np.linalg.norm(across, axis=-1), np.linalg.norm(down, axis=-1)])
        if not lengths.size:
            continue
        smooth = lengths.max(axis=0) < CONTINUOUS_PX * np.median(lengths)
        drawn = np.cross(down[smooth], across[smooth])
        toward = _toward(camera, here[whole][smooth])
        drawn *= np.where((drawn * toward).sum(-1, keepdims=True) < 0.0, -1.0, 1.0)
        angles.append(angles_deg(drawn, normal[:-1, :-1][whole][smooth]))
    return _mean(np.concatenate(angles)) if angles else float("nan")


def _reprojection_px(images: ViewImages) -> float:
    """Mean distance of a coord's projection from its own pixel's centre."""
    resolution_px = images.hit.shape[1]
    distances = []
    for camera, coord, _, hit in _each_view(images):
        rows, columns = np.nonzero(hit)
        pixels, _ = camera.project(coord[hit], resolution_px)
        distances.append(np.linalg.norm(pixels - np.stack([columns, rows], -1) - 0.5, axis=-1))
    return _mean(np.concatenate(distances))


def _edge_distance_px(images: ViewImages) -> float:
    """Mean distance between outlines of the shape and edges of rgb, both ways, cut off.

    Both ways, because noise has an edge everywhere, and so near to every outline.
    """
    resolution_px = images.hit.shape[1]
    reach = EDGE_REACH * resolution_px
    to_edge, to_outline = [], []
    for index, (camera, coord, _, hit) in enumerate(_each_view(images)):
        if not hit.any():
            continue
        _, depth = camera.project(coord, resolution_px)
        outline = _steps(hit.astype(np.float64), 0.5)
        outline |= _steps(np.where(hit, depth, np.nan), SAME_SURFACE)
        edges = np.zeros_like(hit)
        for channel in np.moveaxis(images.rgb[index], -1, 0):
            edges |= _steps(channel, RGB_EDGE)
        to_edge.append(_distances(outline, edges, reach))
        to_outline.append(_distances(edges, outline, reach))
    ways = [_mean(np.concatenate(way)) for way in (to_edge, to_outline) if way]
    return _mean(np.array([way for way in ways if not np.isnan(way)]))


def _distances(
    at: Bool[ndarray, "h w"], to: Bool[ndarray, "h w"], reach: float
) -> Float[ndarray, " n"]:
    """Return how far each pixel of one set is from the other set, at most `reach`."""
    if not to.any():
        return np.full(int(at.sum()), reach)
    return np.minimum(distance_transform_edt(~to)[at], reach)


def _steps(image: Float[ndarray, "h w"], limit: float) -> Bool[ndarray, "h w"]:
    """Return the pixels that differ from the one to the right or below by more than `limit`."""
    steps = np.zeros(image.shape, dtype=bool)
    steps[:, :-1] |= np.abs(np.diff(image, axis=1)) > limit
    steps[:-1] |= np.abs(np.diff(image, axis=0)) > limit
    return steps


# -------------------------------------------------------------------------------- (b) many views


def _cross_view(images: ViewImages) -> dict[str, float]:
    """Compare every hit pixel with what each other view shows at the same place."""
    gaps: dict[str, list[ndarray]] = {"position": [], "normal": [], "rgb": []}
    num_conflicts = num_seen = 0
    for i in range(len(images.cameras)):
        own = [a[i][images.hit[i]] for a in (images.coord, images.normal, images.rgb)]
        for j, camera in enumerate(images.cameras):
            if i == j:
                continue
            place, depth = camera.project(own[0], images.hit.shape[1])
            theirs, whole, near = _look_up(images, j, place)
            _, surface = camera.project(theirs["coord"], images.hit.shape[1])
            behind = depth - surface
            same = whole & (np.abs(behind) <= SAME_SURFACE)
            # In front of what the other view shows, or where it shows nothing.
            conflict = ~near | (whole & (behind < -SAME_SURFACE))
            num_conflicts += int(conflict.sum())
            num_seen += int((conflict | same).sum())
            gaps["position"].append(np.linalg.norm(own[0] - theirs["coord"], axis=-1)[same])
            gaps["normal"].append(angles_deg(own[1][same], theirs["normal"][same]))
            gaps["rgb"].append(np.abs(own[2] - theirs["rgb"]).mean(axis=-1)[same])
    means = {name: _mean(np.concatenate(values or [[]])) for name, values in gaps.items()}
    return {
        "cross_view_position": means["position"],
        "cross_view_normal_deg": means["normal"],
        "cross_view_rgb": means["rgb"],
        "cross_view_conflict": num_conflicts / num_seen if num_seen else float("nan"),
    }


def _look_up(
    images: ViewImages, view: int, place: Float[ndarray, "n 2"]
) -> tuple[dict[str, Float[ndarray, "n 3"]], Bool[ndarray, " n"], Bool[ndarray, " n"]]:
    """Interpolate a view's images at pixel coordinates.

    Returns:
        coord, normal and rgb by name; where all four pixels around are hit and continuous, so that
        these mean something; where anything within a pixel and a half is hit, or nothing is known
        because the place lies outside of the image.
    """
    hit, coord = images.hit[view], images.coord[view]
    resolution_px = len(hit)
    inside = ((place >= 0.5) & (place <= resolution_px - 0.5)).all(axis=-1)
    base = np.clip(np.floor(place - 0.5).astype(int), 0, resolution_px - 2)
    share = place - 0.5 - base
    columns, rows = base[:, 0], base[:, 1]
    corners = [(rows + dy, columns + dx) for dy in (0, 1) for dx in (0, 1)]
    weights = np.stack(
        [
            (share[:, 1] if dy else 1.0 - share[:, 1]) * (share[:, 0] if dx else 1.0 - share[:, 0])
            for dy in (0, 1)
            for dx in (0, 1)
        ]
    )
    stacks = {"coord": coord, "normal": images.normal[view], "rgb": images.rgb[view]}
    found = {
        name: np.einsum("kn,knc->nc", weights, np.stack([image[at] for at in corners]))
        for name, image in stacks.items()
    }
    whole = inside & np.logical_and.reduce([hit[at] for at in corners])
    points = np.stack([coord[at] for at in corners])
    whole &= np.ptp(points, axis=0).max(axis=-1) < SAME_SURFACE
    around = binary_dilation(hit, np.ones((3, 3), dtype=bool))
    near = np.logical_or.reduce([around[at] for at in corners])
    return found, whole, near | ~inside


# --------------------------------------------------------------------------------------- helpers


def _each_view(images: ViewImages):
    return zip(images.cameras, images.coord, images.normal, images.hit, strict=True)


def _toward(camera: Camera, points: Float[ndarray, "n 3"]) -> Float[ndarray, "n 3"]:
    """Return vectors from points to the camera, of any length."""
    if camera.projection == "orthographic":
        return np.broadcast_to(camera.matrix[:3, 2], points.shape)
    return camera.matrix[:3, 3] - points


def angles_deg(a: Float[ndarray, "n 3"], b: Float[ndarray, "n 3"]) -> Float[ndarray, " n"]:
    """Return the angles between vectors of any length; 90 degrees where one is zero."""
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine = (a * b).sum(axis=-1) / np.maximum(lengths, 1e-12)
    return np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))


def _mean(values: Float[ndarray, " n"]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
