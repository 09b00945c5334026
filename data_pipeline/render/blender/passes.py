"""Take the views: one render call each, cropped to the asset, read back as arrays."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import bpy
import numpy as np
import OpenEXR
from mathutils import Matrix
from numpy.typing import NDArray

from data_pipeline.contract import Camera, RenderSpec
from data_pipeline.render.blender.cycles import GEOMETRY_LAYER, LIT_LAYER, UNLIT_LAYER
from data_pipeline.render.blender.lighting import Lights
from data_pipeline.render.failures import AssetFailure

MISS_DEPTH = 1e9
"""Cycles writes a depth of 1e10 where a ray meets nothing."""

MARGIN_PX = 2
"""Pixels around the asset's box that are rendered with it."""


@dataclass(frozen=True)
class Window:
    """The pixels of an image that are rendered: rows and columns, the ends excluded."""

    top: int
    bottom: int
    left: int
    right: int

    def paste(self, values: NDArray, resolution_px: int) -> NDArray:
        """Return the whole image `(h, w, ...)`, 0 outside of the window."""
        image = np.zeros((resolution_px, resolution_px, *values.shape[2:]), values.dtype)
        image[self.top : self.bottom, self.left : self.right] = values
        return image

    def paste_hits(
        self, hit: NDArray[np.bool_], values: NDArray, resolution_px: int, background: int
    ) -> NDArray:
        """Return the whole image `(h, w, c)` of `values` `(n, c)` where the window is `hit`."""
        shape = (resolution_px, resolution_px, values.shape[-1])
        image = np.full(shape, background, values.dtype)
        image[self.top : self.bottom, self.left : self.right][hit] = values
        return image


@dataclass(frozen=True)
class Passes:
    """What Cycles found in the window of one view.

    Args:
        camera: of the view.
        window: where in the image the arrays lie; all else is background.
        rgba: `(h, w, 4)` float32, linear, premultiplied: the colour under the view's lighting.
        albedo: the same of the base colour; `rgba` itself in an unlit view.
        normal: `(h, w, 3)` float32, world, as Cycles interpolates it.
        position: `(h, w, 3)` float32, world.
        depth: `(h, w)` float32, along the viewing axis; `MISS_DEPTH` and more is background.
        cycles_seconds: wall clock that Cycles itself spent.
    """

    camera: Camera
    window: Window
    rgba: NDArray[np.float32]
    albedo: NDArray[np.float32]
    normal: NDArray[np.float32]
    position: NDArray[np.float32]
    depth: NDArray[np.float32]
    cycles_seconds: float


def render_views(
    spec: RenderSpec, uid: str, box: NDArray[np.float64], scratch: Path
) -> Iterator[Passes]:
    """Render every view in storage order.

    Args:
        spec: `set_up_cycles` has been called with it.
        uid: of the asset: seeds random views and lights.
        box: `(2, 3)`, lowest and highest corner of the asset, world.
        scratch: folder for the one EXR file that Blender writes and this function removes.

    Raises:
        AssetFailure: `nonfinite` when a pass holds NaN.
    """
    scene = bpy.context.scene
    camera_object = _add_camera()
    lights = Lights(spec)
    exr = scratch / "view.exr"
    scene.render.filepath = str(exr)
    views = zip(spec.cameras(uid), spec.lightings, spec.light_seeds(uid), strict=True)
    for camera, lighting, seed in views:
        lit = lighting != "albedo"
        if LIT_LAYER in scene.view_layers:
            scene.view_layers[LIT_LAYER].use = lit
        lights.set(lighting, seed)
        _place_camera(camera_object, camera)
        window = _window(camera, box, spec.resolution_px)
        _set_window(scene.render, window, spec.resolution_px)
        exr.unlink(missing_ok=True)
        bpy.ops.render.render(write_still=True)
        yield _read_exr(exr, camera, window, lit)
    exr.unlink()


def _add_camera() -> bpy.types.Object:
    camera = bpy.data.objects.new("relief_camera", bpy.data.cameras.new("relief_camera"))
    bpy.context.scene.collection.objects.link(camera)
    bpy.context.scene.camera = camera
    return camera


def _place_camera(thing: bpy.types.Object, camera: Camera) -> None:
    """Give Blender's camera the pose and projection of `camera` (its axes are ours: -Z, +Y up)."""
    thing.matrix_world = Matrix(camera.camera_to_world)
    data = thing.data
    data.clip_start, data.clip_end = 0.01, 100.0
    if camera.projection == "orthographic":
        data.type, data.ortho_scale = "ORTHO", camera.ortho_scale
    else:
        data.type, data.angle = "PERSP", math.radians(camera.fov_deg)


def _window(camera: Camera, box: NDArray[np.float64], resolution_px: int) -> Window:
    """Return the pixels that the asset's box covers, and `MARGIN_PX` around them."""
    corners = np.array([[x, y, z] for x in box[:, 0] for y in box[:, 1] for z in box[:, 2]])
    pixels, _ = camera.project(corners, resolution_px)
    low = np.floor(pixels.min(axis=0)).astype(int) - MARGIN_PX
    high = np.ceil(pixels.max(axis=0)).astype(int) + MARGIN_PX
    left, top = np.clip(low, 0, resolution_px - 1)
    right, bottom = np.clip(high, 1, resolution_px)
    return Window(int(top), int(bottom), int(left), int(right))


def _set_window(render: bpy.types.RenderSettings, window: Window, resolution_px: int) -> None:
    # Blender multiplies by the resolution again and cuts off: aim at the middle of rounding.
    aim = 0.25
    render.border_min_x = (window.left + aim) / resolution_px
    render.border_max_x = (
        (window.right + aim) / resolution_px if window.right < resolution_px else 1
    )
    bottom, top = resolution_px - window.bottom, resolution_px - window.top
    render.border_min_y = (bottom + aim) / resolution_px
    render.border_max_y = (top + aim) / resolution_px if top < resolution_px else 1


def _read_exr(path: Path, camera: Camera, window: Window, lit: bool) -> Passes:
    with OpenEXR.File(str(path), separate_channels=True) as file:
        channels = {name: channel.pixels for name, channel in file.channels().items()}
        stamps = dict(file.parts[0].header)  # gone when the file is closed
    shape = (window.bottom - window.top, window.right - window.left)

    def read(layer: str, name: str, axes: str) -> NDArray[np.float32]:
        values = np.stack([channels[f"{layer}.{name}.{axis}"] for axis in axes], axis=-1)
        if values.shape[:2] != shape:
            raise ValueError(f"Blender rendered {values.shape[:2]} pixels where {shape} were asked")
        return values

    passes = {
        "rgba": read(LIT_LAYER if lit else UNLIT_LAYER, "Combined", "RGBA"),
        "normal": read(GEOMETRY_LAYER, "Normal", "XYZ"),
        "position": read(GEOMETRY_LAYER, "Position", "XYZ"),
        "depth": read(GEOMETRY_LAYER, "Depth", "Z")[..., 0],
    }
    passes["albedo"] = read(UNLIT_LAYER, "Combined", "RGBA") if lit else passes["rgba"]
    for name, values in passes.items():
        if not np.isfinite(values).all():
            raise AssetFailure("nonfinite", f"the {name} of view {camera.name} holds NaN")
    seconds = sum(_seconds(v) for k, v in stamps.items() if k.endswith(".total_time"))
    return Passes(camera, window, **passes, cycles_seconds=seconds)


def _seconds(stamp: str) -> float:
    """Return the seconds of Cycles' `MM:SS.ss` or `HH:MM:SS.ss`."""
    total = 0.0
    for part in stamp.split(":"):
        total = 60.0 * total + float(part)
    return total
