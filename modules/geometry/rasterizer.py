"""Differentiable images of a mesh: what a rasterizer does, and which one a device gets.

    rasterizer = rasterizer_for(vertices.device)
    seen = rasterizer.rasterize(vertices, faces, cameras, resolution_px)
    coord = rasterizer.interpolate(vertices, faces, seen)
    rgb = rasterizer.texture(image, rasterizer.interpolate(uv, uv_faces, seen), seen)
    alpha = rasterizer.antialias(seen.hit[..., None].to(vertices.dtype), seen)

Gradients reach attributes, textures and texture coordinates exactly; positions inside triangles
through the barycentric coordinates, and at silhouettes through `antialias`. All images are
`v h w c`, row 0 on top, with pixel centres at +0.5; what no triangle covers is 0. Faces count from
both sides. Vertices are positions: where texture seams or hard edges part them, keep them welded
(`mesh.merge_vertices`) and give the attribute its own faces, else every seam is a silhouette.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from data_pipeline.contract import Camera, UserError


@dataclass(frozen=True)
class Fragments:
    """What the pixel centres of some views see of a mesh.

    Args:
        vertices: world positions.
        faces: vertex indices.
        cameras: the views.
        face: index of the nearest face through the pixel centre, -1 where there is none.
        barycentric: weights of that face's three vertices at the pixel centre, in [0, 1] and with
            sum 1; perspective-correct, differentiable in `vertices`; 0 where nothing is hit.
    """

    vertices: Float[Tensor, "n 3"]
    faces: Int[Tensor, "f 3"]
    cameras: tuple[Camera, ...]
    face: Int[Tensor, "v h w"]
    barycentric: Float[Tensor, "v h w 3"]

    def check_faces(self, faces: Int[Tensor, "f 3"]) -> None:
        """Raise a UserError unless there is a face for every rasterized one."""
        if faces.shape != self.faces.shape:
            raise UserError(
                f"attributes come with {len(faces)} faces but {len(self.faces)} were rasterized: "
                "give one face of attributes for each, in the same order"
            )

    @property
    def hit(self) -> Bool[Tensor, "v h w"]:
        """Whether anything is seen: the silhouette at pixel centres."""
        return self.face >= 0

    @cached_property
    def hit_pixels(self) -> Int[Tensor, " p"]:
        """Flat indices, into `v h w`, of the pixels that see a face."""
        return self.hit.flatten().nonzero().flatten()

    @cached_property
    def hit_faces(self) -> Int[Tensor, " p"]:
        """The face at each of `hit_pixels`."""
        return self.face.flatten()[self.hit_pixels].long()


@runtime_checkable
class Rasterizer(Protocol):
    """One mesh in some views, in four differentiable steps."""

    def rasterize(
        self,
        vertices: Float[Tensor, "n 3"],
        faces: Int[Tensor, "f 3"],
        cameras: Sequence[Camera],
        resolution_px: int,
    ) -> Fragments:
        """Return the nearest face in front of the camera at every pixel centre.

        Raises:
            UserError: dtypes, devices or indices do not fit, or vertices are not finite.
        """
        ...

    def interpolate(
        self, attributes: Float[Tensor, "k c"], faces: Int[Tensor, "f 3"], fragments: Fragments
    ) -> Float[Tensor, "v h w c"]:
        """Return attributes at the pixel centres.

        Args:
            attributes: one row each vertex, or each corner, of `faces`.
            faces: indices into `attributes`, in the order of the rasterized faces.
            fragments: what `rasterize` returned.

        Raises:
            UserError: there are more or fewer faces than were rasterized.
        """
        ...

    def texture(
        self,
        image: Float[Tensor, "th tw c"],
        uv: Float[Tensor, "v h w 2"],
        fragments: Fragments,
    ) -> Float[Tensor, "v h w c"]:
        """Return bilinear samples; the image repeats, as in `mesh.sample_texture`.

        Args:
            image: row 0 on top, texel centres at +0.5.
            uv: interpolated texture coordinates, v up: (0, 0) is the image's bottom left corner.
            fragments: what `rasterize` returned; pixels without a face stay 0.
        """
        ...

    def antialias(
        self, image: Float[Tensor, "v h w c"], fragments: Fragments
    ) -> Float[Tensor, "v h w c"]:
        """Return the image blended across silhouettes, which is what moves them.

        The analytic antialiasing of Laine et al., 2020 (arXiv 2011.03277, section 3.6): where two
        neighbouring pixels see different faces and a silhouette edge of the nearer one crosses the
        line between their centres, the pixel that this edge cuts gets the other's colour in
        proportion to the cut. Pass any image made of these fragments, the hit mask above all.
        """
        ...


def rasterizer_for(device: torch.device | str) -> Rasterizer:
    """Return the default rasterizer: nvdiffrast on CUDA, Embree on the CPU.

    Embree also takes CUDA tensors (rays are cast on the CPU, the rest runs on the device): give an
    `EmbreeRasterizer` yourself where nvdiffrast's non-commercial licence does not suit.

    Raises:
        UserError: nvdiffrast is needed and cannot be imported.
    """
    if torch.device(device).type == "cuda":
        from modules.geometry.rasterizer_nvdiffrast import NvdiffrastRasterizer

        return NvdiffrastRasterizer()
    from modules.geometry.rasterizer_embree import EmbreeRasterizer

    return EmbreeRasterizer()


@cache
def rasterizer_or_embree(device: torch.device) -> Rasterizer:
    """Return a device's rasterizer; Embree, with one warning, where nvdiffrast is not installed."""
    try:
        return rasterizer_for(device)
    except UserError as error:
        from modules.geometry.rasterizer_embree import EmbreeRasterizer

        warnings.warn(
            f"{error}. Embree is used instead, which casts rays on the CPU: the same images, but "
            "much slower.",
            stacklevel=2,
        )
        return EmbreeRasterizer()


def check_inputs(
    vertices: Tensor, faces: Tensor, cameras: Sequence[Camera], resolution_px: int
) -> None:
    """Raise a UserError that says what to mend if these cannot be rasterized."""
    if vertices.dtype not in (torch.float32, torch.float64):
        raise UserError(f"vertices are {vertices.dtype}: give float32 (or float64 on Embree)")
    if faces.dtype not in (torch.int32, torch.int64):
        raise UserError(f"faces are {faces.dtype}: give int32 or int64 indices")
    if vertices.device != faces.device:
        raise UserError(
            f"vertices are on {vertices.device} but faces on {faces.device}: move them together"
        )
    if not cameras or resolution_px < 1:
        raise UserError(
            f"{len(cameras)} cameras at {resolution_px} px: give at least one camera and one pixel"
        )
    if not bool(torch.isfinite(vertices).all()):
        raise UserError("vertices hold NaN or infinity: the mesh cannot be rasterized")
    if len(faces):
        low, high = (int(x) for x in torch.aminmax(faces))
        if low < 0 or high >= len(vertices):
            raise UserError(
                f"faces index vertices {low} to {high}, but there are {len(vertices)} vertices"
            )


def half_width(camera: Camera) -> float:
    """Return half the image's width: in world units if orthographic, else at depth 1."""
    if camera.projection == "orthographic":
        assert camera.ortho_scale is not None
        return camera.ortho_scale / 2.0
    assert camera.fov_deg is not None
    return math.tan(math.radians(camera.fov_deg) / 2.0)


def clip_positions(
    vertices: Float[Tensor, "n 3"], cameras: Sequence[Camera]
) -> Float[Tensor, "v n 4"]:
    """Return homogeneous image positions (x, y, z, w), differentiable.

    x / w grows to the right and y / w downwards, both -1 to 1 across the image. z / w is -1 at a
    near plane in front of all vertices (never behind the camera) and 1 beyond them all: it orders
    depth and carries no gradient. w is the depth if perspective, 1 if orthographic.
    """
    options = {"dtype": vertices.dtype, "device": vertices.device}
    matrices = torch.tensor([camera.camera_to_world for camera in cameras], **options)
    half = torch.tensor([half_width(camera) for camera in cameras], **options)[:, None]
    flat = torch.tensor([c.projection == "orthographic" for c in cameras], device=vertices.device)
    flat = flat[:, None]
    offset = [vertices[None, :, axis] - matrices[:, None, axis, 3] for axis in range(3)]

    def along(axis: int) -> Tensor:
        """Not a matrix product: that may run in TF32 or bfloat16, far too coarse here."""
        x, y, z = matrices[:, :3, axis, None].unbind(dim=1)
        return offset[0] * x + offset[1] * y + offset[2] * z

    x, y, back = (along(axis) for axis in range(3))
    depth = -back.detach()
    if not len(vertices):
        return vertices.new_zeros(len(cameras), 0, 4)
    low, high = (bound[:, None] for bound in torch.aminmax(depth, dim=1))
    margin = 0.01 * (high - low) + 1e-4
    far = torch.maximum(high, torch.zeros_like(high)) + margin
    near = torch.maximum(low - margin, torch.where(flat, 0.0, 1e-3) * far)
    slope = torch.where(flat, 2.0, far + near) / (far - near)
    shift = torch.where(flat, far + near, 2.0 * far * near) / (far - near)
    w = torch.where(flat, torch.ones_like(back), -back)
    return torch.stack([x / half, -y / half, slope * depth - shift, w], dim=-1)
