"""Take the views: one render call each, two view layers, encoded as the contract says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import bpy
import numpy as np
import OpenEXR
from numpy.typing import NDArray

from data_pipeline.contract import (
    Camera,
    RenderSpec,
    encode_coord,
    encode_normal,
    linear_to_srgb,
)
from data_pipeline.render.blender.scene import OPAQUE_ALPHA, add_camera, place_camera
from data_pipeline.render.failures import AssetFailure

COLOUR_LAYER, GEOMETRY_LAYER = "colour", "geometry"

FaceNormals = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Takes positions on the surface `(n, 3)`, returns the geometric normals there, of either sign."""

MISS_DEPTH = 1e9
"""Cycles writes a depth of 1e10 where a ray meets nothing."""


@dataclass(frozen=True)
class Views:
    """The views of one asset in storage order.

    Args:
        rgb: `(v, h, w, 4)` uint8, sRGB with straight alpha.
        normal: `(v, h, w, 3)` uint16, `encode_normal`.
        coord: `(v, h, w, 3)` uint16, `encode_coord`.
        hit: `(v, h, w)` uint8, 255 where the pixel centre's ray meets the surface.
        max_abs_position: largest coordinate met, before encoding.
    """

    rgb: NDArray[np.uint8]
    normal: NDArray[np.uint16]
    coord: NDArray[np.uint16]
    hit: NDArray[np.uint8]
    max_abs_position: float


def set_up_cycles(spec: RenderSpec, seed: int, threads: int) -> None:
    """Pin everything that decides pixels, so that no default of Blender's can change them."""
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.world = None
    cycles = scene.cycles
    cycles.device = "CPU"
    cycles.samples = spec.samples
    cycles.seed = seed % 2**31
    cycles.use_adaptive_sampling = False
    cycles.use_denoising = False
    cycles.use_auto_tile = False
    cycles.use_light_tree = False
    cycles.auto_scrambling_distance = False
    cycles.scrambling_distance = 1.0
    # A box of one pixel: alpha is the covered share of the pixel, and what is outside stays out.
    cycles.pixel_filter_type = "BOX"
    cycles.max_bounces = 0  # emission only: the first surface met is the colour
    cycles.transparent_max_bounces = 64
    cycles.min_light_bounces = cycles.min_transparent_bounces = 64  # no Russian roulette: no noise
    cycles.sample_clamp_direct = 0.0
    cycles.film_exposure = 1.0
    render = scene.render
    render.resolution_x = render.resolution_y = spec.resolution_px
    render.resolution_percentage = 100
    render.pixel_aspect_x = render.pixel_aspect_y = 1.0
    render.film_transparent = True
    render.dither_intensity = 0.0
    render.use_motion_blur = render.use_simplify = render.use_border = False
    render.use_compositing = render.use_sequencer = render.use_freestyle = False
    render.use_persistent_data = True  # meshes and textures stay loaded between the views
    render.threads_mode, render.threads = "FIXED", threads
    render.image_settings.file_format = "OPEN_EXR_MULTILAYER"
    render.image_settings.color_depth = "32"
    render.image_settings.exr_codec = "NONE"
    scene.display_settings.display_device = "sRGB"
    scene.view_settings.view_transform = "Standard"
    scene.view_settings.look = "None"
    scene.view_settings.exposure, scene.view_settings.gamma = 0.0, 1.0

    colour = scene.view_layers[0]
    colour.name = COLOUR_LAYER
    colour.use_pass_z = False
    geometry = scene.view_layers.new(GEOMETRY_LAYER)
    # One sample, which Cycles takes at the pixel centre: normal, position and depth then describe
    # one and the same point. Averaged over samples they would not (field notes, section 4).
    geometry.samples = 1
    geometry.use_pass_normal = geometry.use_pass_position = geometry.use_pass_z = True
    for layer in (colour, geometry):
        layer.pass_alpha_threshold = OPAQUE_ALPHA


def render_views(
    cameras: Sequence[Camera], spec: RenderSpec, face_normals: FaceNormals, scratch: Path
) -> Views:
    """Render every camera.

    Args:
        cameras: the views in storage order.
        spec: resolution and samples; `set_up_cycles` has been called with it.
        face_normals: of the asset in world coordinates.
        scratch: folder for the one EXR file that Blender writes and this function removes.

    Raises:
        AssetFailure: `blank` when no view shows the asset, `nonfinite` when a pass holds NaN.
    """
    camera_object = add_camera()
    exr = scratch / "view.exr"
    bpy.context.scene.render.filepath = str(exr)
    bpy.context.scene.render.use_file_extension = False
    views = []
    for camera in cameras:
        place_camera(camera_object, camera)
        exr.unlink(missing_ok=True)
        bpy.ops.render.render(write_still=True)
        views.append(_encode(_read_exr(exr), camera, spec.resolution_px, face_normals))
    exr.unlink()
    rgb, normal, coord, hit = (np.stack([view[i] for view in views]) for i in range(4))
    if not hit.any():
        raise AssetFailure("blank", "no view shows any opaque surface")
    return Views(rgb, normal, coord, hit, max(view[4] for view in views))


def _read_exr(path: Path) -> dict[str, NDArray[np.float32]]:
    """Return the passes by `layer.Pass`, each `(h, w, channels)` with channels in storage order."""
    with OpenEXR.File(str(path), separate_channels=True) as file:
        channels = {name: channel.pixels for name, channel in file.channels().items()}
    wanted = {
        "combined": (COLOUR_LAYER, "Combined", "RGBA"),
        "normal": (GEOMETRY_LAYER, "Normal", "XYZ"),
        "position": (GEOMETRY_LAYER, "Position", "XYZ"),
        "depth": (GEOMETRY_LAYER, "Depth", "Z"),
    }
    return {
        key: np.stack([channels[f"{layer}.{name}.{axis}"] for axis in axes], axis=-1)
        for key, (layer, name, axes) in wanted.items()
    }


def _encode(
    passes: dict[str, NDArray[np.float32]],
    camera: Camera,
    resolution_px: int,
    face_normals: FaceNormals,
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.uint16], NDArray[np.uint8], float]:
    """Return rgb, normal, coord and hit of one view as stored, and the largest coordinate."""
    hit = passes["depth"][..., 0] < MISS_DEPTH
    position = np.where(hit[..., None], passes["position"].astype(np.float64), 0.0)
    normal = np.where(hit[..., None], passes["normal"].astype(np.float64), 0.0)
    for name, values in (("position", position), ("normal", normal), ("rgb", passes["combined"])):
        if not np.isfinite(values).all():
            raise AssetFailure("nonfinite", f"the {name} of view {camera.name} holds NaN")
    _, directions = camera.rays(resolution_px)
    normal[hit] = _face_camera(normal[hit], position[hit], directions[hit], face_normals)
    return (
        _encode_rgb(passes["combined"]),
        encode_normal(normal),
        encode_coord(position),
        hit.astype(np.uint8) * 255,
        float(np.abs(position).max(initial=0.0)),
    )


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


def _encode_rgb(combined: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Turn premultiplied linear RGBA into 8 bit sRGB with straight alpha; clear pixels black."""
    alpha = np.clip(combined[..., 3:].astype(np.float64), 0.0, 1.0)
    premultiplied = combined[..., :3].astype(np.float64)
    straight = np.divide(premultiplied, alpha, where=alpha > 0, out=np.zeros_like(premultiplied))
    srgb = np.clip(linear_to_srgb(straight), 0.0, 1.0)
    return np.rint(np.concatenate([srgb, alpha], axis=-1) * 255.0).astype(np.uint8)
