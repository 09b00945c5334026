"""From passes to the images of a sample: masks, facing normals, encodings, quality figures."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.contract import (
    Camera,
    depth_of_coord,
    encode_coord,
    encode_normal,
    linear_to_srgb,
)
from data_pipeline.render.blender.passes import MISS_DEPTH, Passes
from data_pipeline.render.failures import AssetFailure
from data_pipeline.render.quality import view_figures

NO_NORMAL, NO_COORD = int(encode_normal(np.zeros(1))[0]), int(encode_coord(np.zeros(1))[0])
"""What normal and coord hold where nothing is hit."""

FaceNormals = Callable[[NDArray[np.floating]], NDArray[np.float64]]
"""Takes positions on the surface `(n, 3)`, returns the geometric normals there, of either sign."""


@dataclass(frozen=True)
class Views:
    """The views of one asset in storage order.

    Args:
        rgb: `(v, h, w, 4)` uint8, sRGB with straight alpha.
        albedo: `(l, h, w, 3)` uint8, sRGB, of the lit views alone; None where none is lit.
        normal: `(v, h, w, 3)` uint16, `encode_normal`.
        coord: `(v, h, w, 3)` uint16, `encode_coord`.
        hit: `(v, h, w)` uint8, 255 where the pixel centre's ray meets the surface.
        figures: quality figures of each view, see `quality`.
        cycles_seconds: wall clock that Cycles itself spent.
    """

    rgb: NDArray[np.uint8]
    albedo: NDArray[np.uint8] | None
    normal: NDArray[np.uint16]
    coord: NDArray[np.uint16]
    hit: NDArray[np.uint8]
    figures: list[dict[str, Any]]
    cycles_seconds: float


def encode_passes(views: Iterable[Passes], resolution_px: int, face_normals: FaceNormals) -> Views:
    """Encode the passes of all views as the contract says.

    Args:
        views: in storage order.
        resolution_px: side of each image.
        face_normals: of the asset in world coordinates.

    Raises:
        AssetFailure: `blank` when no view shows the asset.
    """
    images: dict[str, list[NDArray]] = {n: [] for n in ("rgb", "albedo", "normal", "coord", "hit")}
    figures = []
    seconds = 0.0
    for passes in views:
        encoded, view_figure = _encode(passes, resolution_px, face_normals)
        for name, image in encoded.items():
            images[name].append(image)
        figures.append(view_figure)
        seconds += passes.cycles_seconds
    stacked = {name: np.stack(rows) if rows else None for name, rows in images.items()}
    if stacked["hit"] is None or not stacked["hit"].any():
        raise AssetFailure("blank", "no view shows any opaque surface")
    return Views(**stacked, figures=figures, cycles_seconds=seconds)


def _encode(
    passes: Passes, resolution_px: int, face_normals: FaceNormals
) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """Return one view's images, whole, and its quality figures."""
    camera, window = passes.camera, passes.window
    hit = passes.depth < MISS_DEPTH
    points = passes.position[hit]
    normals = _face_camera(
        passes.normal[hit], points, _ray_directions(camera, points), face_normals
    )
    rgb = encode_rgb(passes.rgba)
    images = {
        "rgb": window.paste(rgb, resolution_px),
        "normal": window.paste_hits(hit, encode_normal(normals), resolution_px, NO_NORMAL),
        "coord": window.paste_hits(hit, encode_coord(points), resolution_px, NO_COORD),
        "hit": window.paste(hit.astype(np.uint8) * 255, resolution_px),
    }
    base_colour = rgb[..., :3]
    if passes.albedo is not passes.rgba:
        base_colour = encode_rgb(passes.albedo)[..., :3]
        images["albedo"] = window.paste(base_colour, resolution_px)
    figures = view_figures(
        camera=camera,
        resolution_px=resolution_px,
        corner=(window.top, window.left),
        rgb=base_colour,
        alpha=rgb[..., 3],
        hit=hit,
        points=points,
        normals=normals,
    )
    depth = depth_of_coord(camera, points)
    figures["depth_error"] = float(np.abs(depth - passes.depth[hit]).max(initial=0.0))
    return images, figures


def _ray_directions(camera: Camera, position: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the unit directions `(n, 3)` in which the camera sees points `(n, 3)`."""
    if camera.projection == "orthographic":
        return np.broadcast_to(-camera.matrix[:3, 2].astype(np.float32), position.shape)
    directions = position - camera.matrix[:3, 3]
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def _face_camera(
    normal: NDArray[np.float32],
    position: NDArray[np.float32],
    directions: NDArray[np.floating],
    face_normals: FaceNormals,
) -> NDArray[np.float32]:
    """Return unit normals on the side of the surface that is seen; all arrays `(n, 3)`.

    Cycles turns normals to the side of the face that it hit, by winding. What then still looks away
    was either stored against the winding, and is turned here, or leans beyond the horizon because
    smooth shading does that near a silhouette: such a normal stays, or a point would have opposite
    normals in two views.
    """
    length = np.sqrt(np.einsum("nc,nc->n", normal, normal))[:, None]
    # Where a file stores zero normals there is nothing to interpolate: the face's own must do.
    stored = length[:, 0] > 1e-6
    unit = normal / np.maximum(length, 1e-6)
    doubtful = np.flatnonzero((np.einsum("nc,nc->n", unit, directions) >= 0.0) | ~stored)
    if len(doubtful):
        face = face_normals(position[doubtful])
        face *= np.where((face * directions[doubtful]).sum(axis=1) > 0.0, -1.0, 1.0)[:, None]
        seen = unit[doubtful]
        against = (seen * face).sum(axis=1, keepdims=True) < 0.0
        unit[doubtful] = np.where(stored[doubtful, None], np.where(against, -seen, seen), face)
    return unit


def encode_rgb(premultiplied: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Turn premultiplied linear RGBA into 8 bit sRGB with straight alpha; clear pixels black."""
    result = np.zeros(premultiplied.shape, dtype=np.uint8)
    covered = premultiplied[..., 3] > 0.0
    values = premultiplied[covered]
    alpha = np.minimum(values[:, 3:], 1.0)
    values[:, :3] = np.minimum(linear_to_srgb(values[:, :3] / alpha), 1.0)
    values[:, 3:] = alpha
    result[covered] = np.rint(values * 255.0).astype(np.uint8)
    return result
