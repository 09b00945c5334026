"""The default rasterizer: Embree finds the face at each pixel, torch does all that needs gradients.

Rays are cast on the CPU; tensors may live on any device.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from data_pipeline.contract import Camera
from modules.geometry.rasterize import RayScene
from modules.geometry.rasterizer import Fragments, check_inputs, clip_positions, half_width
from modules.geometry.rasterizer_antialias import antialias

EDGE_ON = 1e-12
"""Area, of an image of area 4, below which a face is seen edge-on."""


class EmbreeRasterizer:
    """See `Rasterizer`. Float32 or float64; faces are found in float32 either way.

    The scene of the last mesh is kept, for as long as its vertices and faces stay the same.
    """

    def __init__(self) -> None:
        self._last: tuple[ndarray, ndarray, RayScene] | None = None

    def rasterize(
        self,
        vertices: Float[Tensor, "n 3"],
        faces: Int[Tensor, "f 3"],
        cameras: Sequence[Camera],
        resolution_px: int,
    ) -> Fragments:
        """Cast one ray through every pixel centre that the mesh can cover."""
        check_inputs(vertices, faces, cameras, resolution_px)
        clip = clip_positions(vertices, cameras)
        scene = self._scene_of(vertices.detach().cpu().numpy(), faces.cpu().numpy())
        face, barycentric = _cast(scene, cameras, resolution_px, clip)
        if vertices.dtype == torch.float64:
            barycentric = barycentric_at(face, clip, faces)
        elif clip.requires_grad:
            barycentric = _WithGradients.apply(barycentric, clip, face, faces)
        return Fragments(vertices, faces, tuple(cameras), face, barycentric)

    def interpolate(
        self, attributes: Float[Tensor, "k c"], faces: Int[Tensor, "f 3"], fragments: Fragments
    ) -> Float[Tensor, "v h w c"]:
        """Weight the attributes of each pixel's three corners."""
        fragments.check_faces(faces)
        corners = faces.index_select(0, fragments.hit_faces)
        weights = fragments.barycentric.flatten(0, 2).index_select(0, fragments.hit_pixels)
        a, b, c = (
            weights[:, corner, None] * attributes.index_select(0, corners[:, corner])
            for corner in range(3)
        )
        return _image(a + b + c, fragments)

    def texture(
        self,
        image: Float[Tensor, "th tw c"],
        uv: Float[Tensor, "v h w 2"],
        fragments: Fragments,
    ) -> Float[Tensor, "v h w c"]:
        """Weight the four texels around each pixel's texture coordinates."""
        height, width, _ = image.shape
        u, v = uv.flatten(0, 2).index_select(0, fragments.hit_pixels).unbind(dim=1)
        x, y = u * width - 0.5, (1.0 - v) * height - 0.5
        column, row = x.detach().floor(), y.detach().floor()
        right, down = (x - column)[:, None], (y - row)[:, None]
        texels = image.flatten(0, 1)

        def texel(dx: int, dy: int) -> Tensor:
            index = (row.long() + dy) % height * width + (column.long() + dx) % width
            return texels.index_select(0, index)

        top = texel(0, 0) * (1 - right) + texel(1, 0) * right
        bottom = texel(0, 1) * (1 - right) + texel(1, 1) * right
        return _image(top * (1 - down) + bottom * down, fragments)

    def antialias(
        self, image: Float[Tensor, "v h w c"], fragments: Fragments
    ) -> Float[Tensor, "v h w c"]:
        """Blend across silhouettes."""
        return antialias(image, fragments)

    def _scene_of(self, *mesh: ndarray) -> RayScene:
        """Return the scene of vertices and faces. Threads may rasterize meshes of their own."""
        last = self._last
        if last is None or not all(map(np.array_equal, last[:2], mesh)):
            vertices, faces = mesh[0].copy(), mesh[1].copy()  # torch may change mesh
            last = self._last = vertices, faces, RayScene(vertices, faces)
        return last[-1]


def _image(values: Float[Tensor, "p c"], fragments: Fragments) -> Float[Tensor, "v h w c"]:
    """Return the image that holds these values at `hit_pixels`."""
    shape = fragments.face.shape
    blank = values.new_zeros(shape.numel(), values.shape[1])
    return blank.index_copy(0, fragments.hit_pixels, values).unflatten(0, shape)


def _cast(
    scene: RayScene, cameras: Sequence[Camera], resolution_px: int, clip: Float[Tensor, "v n 4"]
) -> tuple[Int[Tensor, "v h w"], Float[Tensor, "v h w 3"]]:
    """Return faces and Embree's barycentric coordinates; no ray is cast where none can hit."""
    image = (len(cameras), resolution_px, resolution_px)
    face, barycentric = np.full(image, -1, dtype=np.int32), np.zeros((*image, 3), dtype=np.float32)
    windows = _windows(clip.detach(), resolution_px)
    for view, (camera, (rows, columns)) in enumerate(zip(cameras, windows, strict=True)):
        origins, directions = pixel_rays(camera, resolution_px, rows, columns)
        shape = origins.shape[:2]
        found, u, v = (
            array.reshape(shape)
            for array in scene.intersect(origins.reshape(-1, 3), directions.reshape(-1, 3))
        )
        face[view, rows, columns] = found
        weights = barycentric[view, rows, columns]
        weights[..., 1], weights[..., 2] = u, v
        np.subtract((found >= 0) - u, v, out=weights[..., 0])
    return torch.from_numpy(face).to(clip.device), torch.from_numpy(barycentric).to(clip.device)


def _windows(clip: Float[Tensor, "v n 4"], resolution_px: int) -> list[tuple[slice, slice]]:
    """Return the rows and columns of each view outside of which the mesh covers no pixel."""
    windows = []
    for view in clip:
        low, high = [0, 0], [resolution_px, resolution_px]
        if len(view) and bool((view[:, 3] > 0).all()):  # else it may cover any pixel
            pixels = (view[:, :2] / view[:, 3:] + 1.0) / 2.0 * resolution_px
            least, most = (bound.tolist() for bound in torch.aminmax(pixels, dim=0))
            low = [min(max(math.floor(x) - 1, 0), resolution_px) for x in least]
            high = [min(max(math.ceil(x) + 1, 0), resolution_px) for x in most]
        windows.append((slice(low[1], high[1]), slice(low[0], high[0])))
    return windows


def pixel_rays(
    camera: Camera, resolution_px: int, rows: slice, columns: slice
) -> tuple[Float[ndarray, "h w 3"], Float[ndarray, "h w 3"]]:
    """Return `Camera.rays` of a window in float32, several times as fast.

    The directions are not unit (their part along the axis is), and whatever is equal for all pixels
    is a read-only view of one vector.
    """
    matrix = camera.matrix
    right, up, back, eye = (matrix[:3, axis] for axis in range(4))
    centres = ((np.arange(resolution_px) + 0.5) / resolution_px * 2.0 - 1.0) * half_width(camera)
    across, downward = centres[columns, None] * right, -centres[rows, None] * up
    flat = camera.projection == "orthographic"
    downward = downward + (eye if flat else -back)
    spread = across.astype(np.float32)[None] + downward.astype(np.float32)[:, None]
    shared = np.broadcast_to((-back if flat else eye).astype(np.float32), spread.shape)
    return (spread, shared) if flat else (shared, spread)


class _WithGradients(torch.autograd.Function):
    """Embree's float32 weights with the gradients of `barycentric_at`, computed when asked for."""

    @staticmethod
    def forward(ctx: Any, barycentric: Tensor, clip: Tensor, face: Tensor, faces: Tensor) -> Tensor:
        ctx.save_for_backward(clip, face, faces)
        return barycentric

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        clip, face, faces = ctx.saved_tensors
        with torch.enable_grad():
            clip = clip.detach().requires_grad_()
            weights = barycentric_at(face, clip, faces)
        return None, torch.autograd.grad(weights, clip, gradient)[0], None, None


def barycentric_at(
    face: Int[Tensor, "v h w"], clip: Float[Tensor, "v n 4"], faces: Int[Tensor, "f 3"]
) -> Float[Tensor, "v h w 3"]:
    """Return perspective-correct weights at the pixel centres, differentiable in `clip`.

    Homogeneous edge functions (Olano and Greer, 1997): each weight is the area, seen from the pixel
    centre, of the triangle's other two corners, divided by the sum of the three.
    """
    size, flat = face.shape[-1], face.flatten()
    hit = (flat >= 0).nonzero().flatten()
    view, pixel = hit // size**2, hit % size**2
    centre = torch.stack([pixel % size, pixel // size], dim=1) + 0.5
    centre = centre.to(clip.dtype) * (2.0 / size) - 1.0
    corners = faces.index_select(0, flat.index_select(0, hit)) + (view * clip.shape[1])[:, None]
    a, b, c = (clip.flatten(0, 1).index_select(0, corners[:, corner]) for corner in range(3))
    a, b, c = (corner[:, :2] - centre * corner[:, 3:] for corner in (a, b, c))
    areas = torch.stack([_cross(b, c), _cross(c, a), _cross(a, b)], dim=1)
    total = areas.sum(dim=1, keepdim=True)
    # Faces seen exactly edge-on have no weights: a third each.
    edge_on = total.abs() < EDGE_ON
    weights = torch.where(edge_on, 1.0 / 3.0, areas / torch.where(edge_on, 1.0, total))
    # A hair outside by rounding; more than that only if nearly edge-on.
    weights = weights.clamp(0.0, 1.0)
    weights = weights / weights.sum(dim=1, keepdim=True)
    return clip.new_zeros(len(flat), 3).index_copy(0, hit, weights).unflatten(0, face.shape)


def _cross(a: Float[Tensor, "p 2"], b: Float[Tensor, "p 2"]) -> Float[Tensor, " p"]:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
