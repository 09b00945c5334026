"""Images to latents and back, through any image autoencoder of diffusers."""

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn

from data_pipeline.contract import UserError
from modules.latents.spec import LatentSpec, fingerprint


def load_autoencoder(directory: Path) -> ModelMixin:
    """Load an autoencoder that `save_pretrained` wrote, of the diffusers class that it names."""
    path = directory / "config.json"
    try:
        class_name = json.loads(path.read_text("utf-8"))["_class_name"]
        autoencoder_class: Any = getattr(importlib.import_module("diffusers"), class_name)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"{directory} holds no autoencoder of diffusers ({type(error).__name__}): give the "
            "folder `autoencoder` of a pipeline, as train.py experiment=tiny/autoencoder exports it"
        ) from error
    try:
        autoencoder = autoencoder_class.from_pretrained(
            directory, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{directory}: the weights cannot be read: export them again") from error
    return autoencoder.eval().requires_grad_(False)


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
    autoencoder: Any, images: Float[Tensor, "*batch 3 h w"], packing: int, chunk: int = 64
) -> Float[Tensor, "*batch c hl wl"]:
    """Return packed latents that are not normalised yet, `chunk` images at a time.

    Raises:
        UserError: the images' size does not fit the packing.
    """
    chunks = images.flatten(0, -4).split(chunk)
    raw = torch.cat([encode_images(autoencoder, each) for each in chunks])
    if raw.shape[-1] % packing:
        raise UserError(
            f"packing={packing} does not divide the {raw.shape[-1]} latent cells of "
            f"{images.shape[-1]} px images: choose another packing"
        )
    return pack(raw.unflatten(0, images.shape[:-3]), packing)


class LatentCodec(nn.Module):
    """An autoencoder with the packing and normalisation of a latent spec.

    Args:
        autoencoder: any autoencoder of diffusers, frozen.
        spec: of latents that this very autoencoder made.
        chunk: images that go through the autoencoder at a time.

    Raises:
        UserError: the spec belongs to another autoencoder.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, autoencoder: nn.Module, spec: LatentSpec, chunk: int = 64):
        super().__init__()
        spec.check_autoencoder(fingerprint(autoencoder), "latent codec")
        self.autoencoder: Any = autoencoder
        self.spec, self.chunk = spec, chunk
        for name in ("mean", "std"):
            values = torch.tensor(getattr(spec, name))[:, None, :, None, None]  # m 1 c 1 1
            self.register_buffer(name, values, persistent=False)

    @torch.no_grad()
    def encode(
        self, images: Float[Tensor, "b m v 3 h w"]
    ) -> Float[Tensor, "b m v c grid_h grid_w"]:
        """Encode images in [-1, 1] to packed, normalised latents."""
        packed = encode_packed(self.autoencoder, images, self.spec.packing, self.chunk)
        return (packed - self.mean) / self.std

    @torch.no_grad()
    def decode(
        self, latents: Float[Tensor, "b m v c grid_h grid_w"]
    ) -> Float[Tensor, "b m v 3 h w"]:
        """Decode packed, normalised latents to images, clipped to [-1, 1]."""
        raw = unpack(latents * self.std + self.mean, self.spec.packing)
        chunks = raw.flatten(0, 2).split(self.chunk)
        images = torch.cat([self.autoencoder.decode(chunk).sample for chunk in chunks])
        return images.unflatten(0, latents.shape[:3]).clamp(-1.0, 1.0)
