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

FaceNormals = Callable[[NDArray[np.float64]], NDArray[np.float64]]
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
    position = np.where(hit[..., None], passes.position, np.float32(0.0)).astype(np.float64)
    normal = np.zeros_like(position)
    directions = _ray_directions(camera, position[hit])
    normal[hit] = _face_camera(
        passes.normal[hit].astype(np.float64), position[hit], directions, face_normals
    )
    rgb = encode_rgb(passes.rgba)
    images = {
        "rgb": window.paste(rgb, resolution_px, 0),
        "normal": window.paste(encode_normal(normal), resolution_px, 0),
        "coord": window.paste(encode_coord(position), resolution_px, 0),
        "hit": window.paste(hit.astype(np.uint8) * 255, resolution_px, 0),
    }
    outside = np.ones((resolution_px, resolution_px), dtype=bool)
    outside[window.top : window.bottom, window.left : window.right] = False
    zero = np.zeros(3)
    images["normal"][outside] = encode_normal(zero)
    images["coord"][outside] = encode_coord(zero)
    if passes.albedo is not passes.rgba:
        images["albedo"] = window.paste(encode_rgb(passes.albedo)[..., :3], resolution_px, 0)
    figures = view_figures(
        camera=camera,
        resolution_px=resolution_px,
        corner=(window.top, window.left),
        rgb=images["albedo"][window.top : window.bottom, window.left : window.right]
        if "albedo" in images
        else rgb[..., :3],
        alpha=rgb[..., 3],
        hit=hit,
        position=position,
        normal=normal,
    )
    depth = depth_of_coord(camera, position[hit])
    figures["depth_error"] = float(np.abs(depth - passes.depth[hit]).max(initial=0.0))
    return images, figures


def _ray_directions(camera: Camera, position: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the unit directions `(n, 3)` in which the camera sees points `(n, 3)`."""
    if camera.projection == "orthographic":
        return np.broadcast_to(-camera.matrix[:3, 2], position.shape)
    directions = position - camera.matrix[:3, 3]
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def _face_camera(
    normal: NDArray[np.float64],
    position: NDArray[np.float64],
    directions: NDArray[np.float64],
    face_normals: FaceNormals,
) -> NDArray[np.float64]:
    """Return unit normals on the side of the surface that is seen; all arrays `(n, 3)`.

    Cycles turns normals to the side of the face that it hit, by winding. What then still looks away
    was either stored against the winding, and is turned here, or leans beyond the horizon because
    smooth shading does that near a silhouette: such a normal stays, or a point would have opposite
    normals in two views.
    """
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    # Where a file stores zero normals there is nothing to interpolate: the face's own must do.
    unit = np.where(length > 1e-6, normal / np.maximum(length, 1e-6), 0.0)
    doubtful = np.flatnonzero((unit * directions).sum(axis=1) >= 0.0)
    if len(doubtful):
        face = face_normals(position[doubtful])
        face *= np.where((face * directions[doubtful]).sum(axis=1) > 0.0, -1.0, 1.0)[:, None]
        seen = unit[doubtful]
        against = (seen * face).sum(axis=1, keepdims=True) < 0.0
        seen = np.where(against, -seen, seen)
        unit[doubtful] = np.where(length[doubtful] > 1e-6, seen, face)
    return unit


def encode_rgb(premultiplied: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Turn premultiplied linear RGBA into 8 bit sRGB with straight alpha; clear pixels black."""
    result = np.zeros(premultiplied.shape, dtype=np.uint8)
    covered = premultiplied[..., 3] > 0.0
    colour, alpha = premultiplied[covered, :3], np.minimum(premultiplied[covered, 3:], 1.0)
    srgb = np.minimum(linear_to_srgb(colour.astype(np.float64) / alpha), 1.0)
    result[covered] = np.rint(np.concatenate([srgb, alpha], axis=-1) * 255.0)
    return result
