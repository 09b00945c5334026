"""The joint denoiser: all views and modalities of an asset, and its text, as one sequence."""

from typing import Any

import torch
from diffusers import Flux2Transformer2DModel
from jaxtyping import Float
from torch import Tensor, nn

from data_pipeline.contract import MODALITIES
from modules.networks.flux2 import run_flux2

VIEW_STRIDE = 10
"""Rotary T of view i is `10 * i`: FLUX.2's pipeline numbers its reference images so."""


class JointDenoiser(nn.Module):
    """Denoise the 2.5D latents of whole assets; each modality may have its own noise level.

    Tokens run modality by modality, then view, row, column. Same-pixel tokens of the modalities
    share their rotary position; learned embeddings, zero at the start, tell modalities and views
    apart. These are multiplied by the root of the width, so that they grow fast enough: plain ones
    leave a short training with views that come out in each other's modality.

    Args:
        transformer: runs the blocks; must be one without guidance embedding (`guidance_embeds`).
        num_views: views of the layout.
    """

    def __init__(self, transformer: Flux2Transformer2DModel, num_views: int) -> None:
        super().__init__()
        self.transformer = transformer
        width = transformer.inner_dim
        self.modality_embedding = nn.Parameter(torch.zeros(len(MODALITIES), width))
        self.view_embedding = nn.Parameter(torch.zeros(num_views, width))

    @classmethod
    def from_scratch(cls, *, num_views: int, **config: Any) -> "JointDenoiser":
        """Build an untrained denoiser whose first prediction is zero.

        Args:
            num_views: views of the layout.
            config: keyword arguments of `Flux2Transformer2DModel`.
        """
        transformer = Flux2Transformer2DModel(**config)
        nn.init.zeros_(transformer.proj_out.weight)
        return cls(transformer, num_views)

    @property
    def channels(self) -> int:
        """Channels of the packed latents."""
        return self.transformer.config["in_channels"]

    def forward(
        self,
        latents: Float[Tensor, "b m v c h w"],
        timesteps: Float[Tensor, "b m"],
        text: Float[Tensor, "b k e"],
    ) -> Float[Tensor, "b m v c h w"]:
        """Return the network's prediction (velocity or clean latents, as trained).

        Args:
            latents: packed, normalised latents, noisy or clean.
            timesteps: noise level per sample and modality, 0 = clean, 1 = pure noise.
            text: text embeddings; every row has the same length, padding included.
        """
        _, num_modalities, num_views, _, height, width = latents.shape
        tokens = self.transformer.x_embedder(latents.movedim(3, -1))  # b m v h w d
        gain = self.transformer.inner_dim**0.5
        tokens = tokens + gain * self.view_embedding[:, None, None]
        tokens = tokens + gain * self.modality_embedding[:, None, None, None]
        prediction = run_flux2(
            self.transformer,
            tokens.flatten(1, 4),
            text,
            timesteps,
            image_ids(num_modalities, num_views, height, width, latents.device),
            text_ids(text.shape[1], latents.device),
        )
        return prediction.unflatten(1, (num_modalities, num_views, height, width)).movedim(-1, 3)


def image_ids(
    num_modalities: int, num_views: int, height: int, width: int, device: torch.device
) -> Float[Tensor, "s 4"]:
    """Return the rotary positions (T, h, w, l) of all image tokens."""
    view, row, column = torch.meshgrid(
        VIEW_STRIDE * torch.arange(num_views, device=device),
        torch.arange(height, device=device),
        torch.arange(width, device=device),
        indexing="ij",
    )
    ids = torch.stack([view, row, column, torch.zeros_like(view)], dim=-1).float()
    return ids.flatten(0, 2).repeat(num_modalities, 1)


def text_ids(num_tokens: int, device: torch.device) -> Float[Tensor, "k 4"]:
    """Return the rotary positions (0, 0, 0, l) of text tokens."""
    ids = torch.zeros(num_tokens, 4, device=device)
    ids[:, 3] = torch.arange(num_tokens, device=device)
    return ids
