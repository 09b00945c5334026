"""The rasterizer of CUDA devices: nvdiffrast (optional; its licence is non-commercial)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from data_pipeline.contract import Camera, UserError
from modules.geometry.rasterizer import Fragments, check_inputs, clip_positions


@dataclass(frozen=True)
class NvdiffrastFragments(Fragments):
    """Fragments with what nvdiffrast wants to see again.

    Args:
        clip: homogeneous vertex positions.
        raster: weights of corners 0 and 1, z / w, and the face counted from 1 (0: none).
    """

    clip: Float[Tensor, "v n 4"]
    raster: Float[Tensor, "v h w 4"]


class NvdiffrastRasterizer:
    """See `Rasterizer`. Float32 on CUDA; attributes of lower precision are raised to float32.

    The y of `clip_positions` points down, and nvdiffrast's first row is that of the least y: so its
    images have our row 0 on top without being turned.
    """

    def __init__(self) -> None:
        try:
            import nvdiffrast.torch  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError(
                f"nvdiffrast cannot be imported ({error}): install it as docs/install.md says (its "
                "licence is non-commercial), or give an EmbreeRasterizer, which needs no licence"
            ) from error
        self._nvdiffrast: Any = nvdiffrast.torch
        self._contexts: dict[torch.device, Any] = {}

    def rasterize(
        self,
        vertices: Float[Tensor, "n 3"],
        faces: Int[Tensor, "f 3"],
        cameras: Sequence[Camera],
        resolution_px: int,
    ) -> NvdiffrastFragments:
        """Rasterize every view in one call."""
        if vertices.device.type != "cuda" or vertices.dtype != torch.float32:
            raise UserError(
                f"vertices are {vertices.dtype} on {vertices.device}: nvdiffrast takes float32 on "
                "a CUDA device; rasterize these with an EmbreeRasterizer"
            )
        check_inputs(vertices, faces, cameras, resolution_px)
        if len(faces) >= 2**24:
            raise UserError(f"{len(faces):,} faces: nvdiffrast counts to {2**24:,}; simplify it")
        clip = clip_positions(vertices, cameras).contiguous()
        image = (len(cameras), resolution_px, resolution_px)
        if len(faces):
            context = self._context(vertices.device)
            raster, _ = self._nvdiffrast.rasterize(
                context, clip, _indices(faces), image[1:], grad_db=False
            )
        else:  # nvdiffrast refuses a mesh without faces
            raster = clip.new_zeros(*image, 4)
        face = raster[..., 3].to(torch.int32) - 1
        first, second = raster[..., 0], raster[..., 1]
        weights = torch.stack([first, second, 1.0 - first - second], dim=-1)
        barycentric = weights * (face >= 0)[..., None]
        return NvdiffrastFragments(
            vertices, faces, tuple(cameras), face, barycentric, clip=clip, raster=raster
        )

    def interpolate(
        self,
        attributes: Float[Tensor, "k c"],
        faces: Int[Tensor, "f 3"],
        fragments: Fragments,
    ) -> Float[Tensor, "v h w c"]:
        """Weight the attributes of each pixel's three corners."""
        fragments.check_faces(faces)
        raster = _own(fragments).raster
        if not len(faces):
            return raster.new_zeros(*fragments.face.shape, attributes.shape[1])
        attributes = attributes.float()[None].contiguous()
        return self._nvdiffrast.interpolate(attributes, raster, _indices(faces))[0]

    def texture(
        self,
        image: Float[Tensor, "th tw c"],
        uv: Float[Tensor, "v h w 2"],
        fragments: Fragments,
    ) -> Float[Tensor, "v h w c"]:
        """Sample bilinearly, without mipmaps."""
        from_top = torch.stack([uv[..., 0], 1.0 - uv[..., 1]], dim=-1).float()
        samples = self._nvdiffrast.texture(
            image.float()[None].contiguous(), from_top, filter_mode="linear", boundary_mode="wrap"
        )
        return samples * fragments.hit[..., None]

    def antialias(
        self, image: Float[Tensor, "v h w c"], fragments: Fragments
    ) -> Float[Tensor, "v h w c"]:
        """Blend across silhouettes."""
        own = _own(fragments)
        if not len(own.faces):
            return image.float()
        return self._nvdiffrast.antialias(
            image.float().contiguous(), own.raster, own.clip, _indices(own.faces)
        )

    def _context(self, device: torch.device) -> Any:
        """Return the device's context, whose buffers are kept between calls."""
        if device not in self._contexts:
            self._contexts[device] = self._nvdiffrast.RasterizeCudaContext(device=device)
        return self._contexts[device]


def _own(fragments: Fragments) -> NvdiffrastFragments:
    if not isinstance(fragments, NvdiffrastFragments):
        raise UserError("these fragments come from another rasterizer: rasterize with this one")
    return fragments


def _indices(faces: Int[Tensor, "f 3"]) -> Int[Tensor, "f 3"]:
    return faces.to(torch.int32).contiguous()
