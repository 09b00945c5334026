"""Pictures of meshes and of 2.5D images, as arrays and as PNG bytes for pages."""

import base64
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, Shaped, UInt8
from numpy import ndarray

from data_pipeline.contract import (
    ORTHO_CAMERA_DISTANCE,
    Camera,
    linear_to_srgb,
    look_at_origin,
    srgb_to_linear,
    unit_cube_frame,
)
from modules.geometry.mesh import ColoredMesh, Mesh
from modules.geometry.rasterize import render_mesh

LIGHT = np.array([-0.45, 0.65, 0.75]) / np.linalg.norm([-0.45, 0.65, 0.75])
"""Direction of the light in the camera's frame: over the photographer's left shoulder."""

AMBIENT = 0.38
"""Share of the light that comes from everywhere."""


def turntable_cameras(
    mesh: Mesh, num_views: int, *, start_deg: float = 30.0, elevation_deg: float = 20.0
) -> tuple[Camera, ...]:
    """Return cameras evenly around the origin, at the one scale at which the mesh fills the views.

    Args:
        mesh: the mesh, in world and about centred.
        num_views: how many.
        start_deg: azimuth of the first.
        elevation_deg: of all.
    """
    poses = [
        look_at_origin(start_deg + 360.0 * i / num_views, elevation_deg, ORTHO_CAMERA_DISTANCE)
        for i in range(num_views)
    ]
    used = mesh.vertices[np.unique(mesh.faces)]
    half = max(np.abs(used @ np.asarray(pose)[:3, :2]).max() for pose in poses)
    return tuple(
        Camera(
            name=f"turn{i}",
            camera_to_world=pose,
            projection="orthographic",
            ortho_scale=2.0 * float(np.clip(1.04 * half, 0.05, 1.5)),
        )
        for i, pose in enumerate(poses)
    )


def shaded_views(
    mesh: Mesh, cameras: Sequence[Camera], resolution_px: int
) -> UInt8[ndarray, "v h w 4"]:
    """Return views in their own colours under one light that moves with the camera, as RGBA.

    Each pixel is the mean of four rays, so silhouettes are smooth; the background is transparent.

    Args:
        mesh: the mesh, in world.
        cameras: the views.
        resolution_px: side of the views.
    """
    views = render_mesh(mesh, cameras, 2 * resolution_px)
    light = np.stack([camera.matrix[:3, :3] @ LIGHT for camera in cameras])
    facing = np.maximum(np.einsum("vhwc,vc->vhw", views.normal, light), 0.0)
    shade = AMBIENT + (1.0 - AMBIENT) * facing
    colour = srgb_to_linear(views.rgb) * shade[..., None] * views.hit[..., None]
    cover = _halve(views.hit[..., None].astype(np.float64))
    mean = _halve(colour) / np.maximum(cover, 1e-9)
    rgba = np.concatenate([linear_to_srgb(mean), cover], axis=-1)
    return np.rint(np.clip(rgba, 0.0, 1.0) * 255.0).astype(np.uint8)


def resized(views: Shaped[ndarray, "v h w c"], side_px: int) -> Shaped[ndarray, "v h2 w2 c"]:
    """Return square views at another side, by nearest pixel."""
    index = np.arange(side_px) * views.shape[1] // side_px
    return views[:, index][:, :, index]


def turntable(mesh: Mesh, num_views: int = 8, resolution_px: int = 180) -> UInt8[ndarray, "h w 4"]:
    """Return a strip of shaded views all around a mesh in the unit cube, left to right."""
    views = shaded_views(mesh, turntable_cameras(mesh, num_views), resolution_px)
    return side_by_side(list(views))


def in_unit_cube(mesh: ColoredMesh) -> ColoredMesh:
    """Return the mesh moved so that the box of its faces is centred and of longest side 1."""
    used = mesh.vertices[mesh.faces].reshape(-1, 3)
    return mesh.transformed(unit_cube_frame(used.min(axis=0), used.max(axis=0)))


def side_by_side(images: Sequence[UInt8[ndarray, "h w c"]]) -> UInt8[ndarray, "h w2 c"]:
    """Return images of one height as one image, left to right."""
    return np.concatenate(list(images), axis=1)


def to_png(image: UInt8[ndarray, "h w c"]) -> bytes:
    """Encode an RGB or RGBA image as PNG."""
    order = cv2.COLOR_RGBA2BGRA if image.shape[2] == 4 else cv2.COLOR_RGB2BGR
    ok, png = cv2.imencode(".png", cv2.cvtColor(image, order), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    if not ok:
        raise ValueError(f"OpenCV could not encode an image of shape {image.shape}")
    return png.tobytes()


def data_uri(png: bytes) -> str:
    """Return PNG bytes as an address that a page can hold within itself."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _halve(image: Float[ndarray, "v h w c"]) -> Float[ndarray, "v h2 w2 c"]:
    """Average blocks of 2 x 2 pixels."""
    v, h, w, c = image.shape
    return image.reshape(v, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))
