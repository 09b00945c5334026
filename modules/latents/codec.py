"""Images to latents and back, through any image autoencoder of diffusers."""

from typing import Any

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn

from data_pipeline.contract import UserError
from modules.latents.spec import LatentSpec

CHUNK_PX = 2**20
"""Pixels that go through an autoencoder at a time: four images of 512 px. What bounds memory is the
widest layer at full resolution: 256 MB a tensor in TAEF2, 512 MB in FLUX.2's autoencoder."""


def encode_images(autoencoder: Any, images: Float[Tensor, "n 3 h w"]) -> Any:
    """Return raw latents (n c hl wl), the mode where the autoencoder gives a distribution."""
    encoded = autoencoder.encode(images)
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mode()
    return deterministic_latents(encoded)


def deterministic_latents(encoded: Any) -> Any:
    """Return the latents (n c hl wl) that an autoencoder without a distribution gave."""
    return encoded.latents if hasattr(encoded, "latents") else encoded.latent


def pack(latents: Float[Tensor, "*batch c h w"], packing: int) -> Float[Tensor, "*batch c2 h2 w2"]:
    """Gather `packing` x `packing` cells into the channels of one."""
    flat = nn.functional.pixel_unshuffle(latents.flatten(0, -4), packing)
    return flat.unflatten(0, latents.shape[:-3])


def unpack(
    latents: Float[Tensor, "*batch c h w"], packing: int
) -> Float[Tensor, "*batch c2 h2 w2"]:
    """Undo `pack`."""
    flat = nn.functional.pixel_shuffle(latents.flatten(0, -4), packing)
    return flat.unflatten(0, latents.shape[:-3])


@torch.no_grad()
def encode_packed(
    autoencoder: Any, images: Float[Tensor, "*batch 3 h w"], packing: int, chunk_px: int = CHUNK_PX
) -> Float[Tensor, "*batch c hl wl"]:
    """Return packed latents that are not normalised yet.

    Args:
        autoencoder: of diffusers.
        images: in [-1, 1].
        packing: side of the square of cells that becomes one.
        chunk_px: about so many pixels are encoded at a time.

    Raises:
        UserError: the images' size does not fit the packing.
    """
    flat = images.flatten(0, -4)
    chunk = max(1, chunk_px // flat[0, 0].numel())
    raw = torch.cat([encode_images(autoencoder, each) for each in flat.split(chunk)])
    if raw.shape[-1] % packing:
        raise UserError(
            f"packing={packing} does not divide the {raw.shape[-1]} latent cells of "
            f"{images.shape[-1]} px images: choose another packing"
        )
    return pack(raw.unflatten(0, images.shape[:-3]), packing)


@torch.no_grad()
def decode_packed(
    autoencoder: Any,
    latents: Float[Tensor, "*batch c hl wl"],
    packing: int,
    chunk_px: int = CHUNK_PX,
) -> Float[Tensor, "*batch 3 h w"]:
    """Return the images of packed latents that are not normalised, clipped to [-1, 1].

    Args:
        autoencoder: of diffusers.
        latents: as `encode_packed` gives them.
        packing: of the latents.
        chunk_px: about so many pixels are decoded at a time.
    """
    raw = unpack(latents, packing).flatten(0, -4)
    decoded = [autoencoder.decode(raw[:1]).sample]  # tells how large the images are
    chunk = max(1, chunk_px // decoded[0][0, 0].numel())
    for start in range(1, len(raw), chunk):
        decoded.append(autoencoder.decode(raw[start : start + chunk]).sample)
    return torch.cat(decoded).unflatten(0, latents.shape[:-3]).clamp(-1.0, 1.0)


SINGLE_PACKING = 2


def own_statistics(
    autoencoder: Any,
) -> tuple[int, Float[Tensor, " c"], Float[Tensor, " c"]] | None:
    """Return packing, mean and std per packed channel that an autoencoder itself carries.

    FLUX.2's does, as the running statistics of a batch norm. SD3's, FLUX.1's and those before them
    have one factor and one shift, (z - shift) * factor; their backbones take 2 x 2 cells as one.
    Others give None.
    """
    norm, config = getattr(autoencoder, "bn", None), autoencoder.config
    if norm is None and isinstance(autoencoder, AutoencoderKL):
        channels = torch.ones(config.latent_channels * SINGLE_PACKING**2, device=autoencoder.device)
        return (
            SINGLE_PACKING,
            channels * (config.shift_factor or 0.0),
            channels / config.scaling_factor,
        )
    if norm is None:
        return None
    return (
        autoencoder.config.patch_size[0],
        norm.running_mean,
        (norm.running_var + norm.eps).sqrt(),
    )


class LatentCodec(nn.Module):
    """An autoencoder with the packing and normalisation of a latent spec.

    Args:
        autoencoder: any autoencoder of diffusers, frozen.
        spec: of latents that this very encoder made.
        chunk_px: pixels that go through the autoencoder at a time.

    Raises:
        UserError: the spec belongs to another encoder.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, autoencoder: nn.Module, spec: LatentSpec, chunk_px: int = CHUNK_PX):
        super().__init__()
        spec.check_autoencoder(autoencoder, "latent codec")
        self.autoencoder: Any = autoencoder
        self.spec, self.chunk_px = spec, chunk_px
        for name in ("mean", "std"):
            values = torch.tensor(getattr(spec, name))[:, None, :, None, None]  # m 1 c 1 1
            self.register_buffer(name, values, persistent=False)

    @property
    def image_px(self) -> int:
        """Side of the images that the spec's latents decode to."""
        cell = self.mean.new_zeros(1, self.spec.channels, 1, 1)
        return self.spec.grid * decode_packed(self.autoencoder, cell, self.spec.packing).shape[-1]

    @torch.no_grad()
    def encode(
        self, images: Float[Tensor, "b m v 3 h w"]
    ) -> Float[Tensor, "b m v c grid_h grid_w"]:
        """Encode images in [-1, 1] to packed, normalised latents."""
        packed = encode_packed(self.autoencoder, images, self.spec.packing, self.chunk_px)
        return (packed - self.mean) / self.std

    @torch.no_grad()
    def decode(
        self, latents: Float[Tensor, "b m v c grid_h grid_w"]
    ) -> Float[Tensor, "b m v 3 h w"]:
        """Decode packed, normalised latents to images, clipped to [-1, 1]."""
        raw = latents * self.std + self.mean
        return decode_packed(self.autoencoder, raw, self.spec.packing, self.chunk_px)
