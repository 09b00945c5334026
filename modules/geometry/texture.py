"""Baking: every view's pixels are carried to the texels that it sees, blended by angle."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from scipy import ndimage

from data_pipeline.contract import Camera, linear_to_srgb, srgb_to_linear
from modules.geometry.atlas import Atlas
from modules.geometry.lift import Observation
from modules.geometry.nearest_pixel import nearest_pixel
from modules.geometry.rasterize import RayScene

ColourFunction = Callable[[ndarray, ndarray], ndarray]
"""Maps world points and unit normals, `(p, 3)` each, to sRGB colours `(p, 3)` in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BakeSettings:
    """How views are blended into a texture.

    Args:
        resolution_px: side of the texture.
        angle_power: a view counts by cos(angle to the normal) to this power.
        depth_tolerance: a texel is the surface that a pixel saw if their depths differ by less
            than so many pixel spacings (seen head-on; more at a slant).
        edge_weight: how much pixels beside a step in depth count: they blend two surfaces.
        fallback_weight: how much the colour field counts beside the views.
    """

    resolution_px: int = 512
    angle_power: float = 4.0
    depth_tolerance: float = 2.0
    edge_weight: float = 0.02
    fallback_weight: float = 1e-3


def bake(
    vertices: Float[ndarray, "n 3"],
    atlas: Atlas,
    normals: Float[ndarray, "n 3"],
    observation: Observation,
    noise: float,
    colour_field: ColourFunction,
    settings: BakeSettings,
) -> UInt8[ndarray, "th tw 3"]:
    """Return the texture of a mesh: sRGB, row 0 on top, filled to the last texel.

    Args:
        vertices: positions of the atlas's vertices, world.
        atlas: faces and texture coordinates.
        normals: unit normals of the atlas's vertices.
        observation: the views.
        noise: how far the views' depths may be off, world units.
        colour_field: gives colours where no view sees the surface.
        settings: how views are blended.
    """
    covered, position, normal = _texels(vertices, atlas, normals, settings.resolution_px)
    scene = RayScene(vertices, atlas.faces)
    total = np.full((len(position), 1), settings.fallback_weight)
    linear = srgb_to_linear(colour_field(position, normal)) * settings.fallback_weight
    for view, camera in enumerate(observation.cameras):
        weight, colour = _from_view(
            scene, camera, observation, view, position, normal, noise, settings
        )
        total += weight[:, None]
        linear += weight[:, None] * colour
    texture = np.zeros((*covered.shape, 3))
    texture[covered] = linear_to_srgb(linear / total)
    # Texels outside the charts repeat the nearest covered one, so filtering blends no background.
    row, column = nearest_pixel(covered)
    return np.rint(np.clip(texture[row, column], 0.0, 1.0) * 255.0).astype(np.uint8)


def _texels(
    vertices: Float[ndarray, "n 3"],
    atlas: Atlas,
    normals: Float[ndarray, "n 3"],
    resolution_px: int,
) -> tuple[Bool[ndarray, "th tw"], Float[ndarray, "p 3"], Float[ndarray, "p 3"]]:
    """Return which texel centres lie on the mesh, and their world positions and normals."""
    flat = np.concatenate([atlas.uv, np.zeros((len(atlas.uv), 1))], axis=1)
    centre = (np.arange(resolution_px) + 0.5) / resolution_px
    u, v = np.meshgrid(centre, 1.0 - centre)
    origins = np.stack([u.ravel(), v.ravel(), np.ones(u.size)], axis=1)
    down = np.broadcast_to(np.array([0.0, 0.0, -1.0]), origins.shape)
    face, barycentric = RayScene(flat, atlas.faces).first_hit(origins, down)
    covered = face >= 0
    corners = atlas.faces[face[covered]]
    position = np.einsum("pk,pkc->pc", barycentric[covered], vertices[corners])
    normal = np.einsum("pk,pkc->pc", barycentric[covered], normals[corners])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    return covered.reshape(u.shape), position, normal


def _from_view(
    scene: RayScene,
    camera: Camera,
    observation: Observation,
    view: int,
    position: Float[ndarray, "p 3"],
    normal: Float[ndarray, "p 3"],
    noise: float,
    settings: BakeSettings,
) -> tuple[Float[ndarray, " p"], Float[ndarray, "p 3"]]:
    """Return how much one view counts for each texel, and the linear colour that it saw there."""
    depth, image = observation.depth[view], srgb_to_linear(observation.rgb[view])
    spacing = observation.spacing
    far = np.where(np.isfinite(depth), depth, 1e6)  # the background is one more step in depth
    step = ndimage.maximum_filter(far, 3) - ndimage.minimum_filter(far, 3)
    edge = step > 6.0 * spacing + 2.0 * noise
    trust = np.where(edge, settings.edge_weight, 1.0) * observation.hit[view]
    if camera.projection == "orthographic":
        toward = np.broadcast_to(camera.matrix[:3, 2], position.shape)
    else:
        toward = camera.matrix[:3, 3] - position
        toward = toward / np.linalg.norm(toward, axis=1, keepdims=True)
    cosine = (normal * toward).sum(axis=1)
    weight, linear = np.zeros(len(position)), np.zeros((len(position), 3))
    facing = np.flatnonzero(cosine > 0.05)
    start = position[facing] + 0.5 * spacing * (normal[facing] + toward[facing])
    facing = facing[scene.first_hit(start, toward[facing])[0] < 0]
    pixels, own = camera.project(position[facing], depth.shape[0])
    tolerance = settings.depth_tolerance * (spacing / np.maximum(cosine[facing], 0.2) + noise)
    x, y = (pixels - 0.5).T
    column, row = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    fx, fy = x - column, y - row
    for dx, dy, share in (
        (0, 0, (1 - fx) * (1 - fy)),
        (1, 0, fx * (1 - fy)),
        (0, 1, (1 - fx) * fy),
        (1, 1, fx * fy),
    ):
        r, c = row + dy, column + dx
        inside = (r >= 0) & (c >= 0) & (r < depth.shape[0]) & (c < depth.shape[1])
        r, c = np.where(inside, r, 0), np.where(inside, c, 0)
        same = inside & (np.abs(depth[r, c] - own) < tolerance)
        part = share * trust[r, c] * same
        weight[facing] += part
        linear[facing] += part[:, None] * image[r, c]
    linear /= np.maximum(weight, 1e-12)[:, None]
    return weight * np.maximum(cosine, 0.0) ** settings.angle_power, linear
