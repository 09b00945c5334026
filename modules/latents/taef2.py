"""TAEF2, the tiny autoencoder of FLUX.2's latents (Ollin Boer Bohan, MIT licence).

2.7 million weights against the 84 million of FLUX.2's own: small enough to encode and decode on a
CPU. `AutoencoderTiny` of diffusers cannot hold it, as its coarsest blocks have one branch more.
"""

from collections.abc import Mapping

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from jaxtyping import Float
from torch import Tensor, nn

NUM_LEVELS = 3
"""Halvings of the side, each followed by three blocks: 8 x 8 pixels to one cell."""

LATENT_LIMIT = 3.0
"""The decoder takes latents through `LATENT_LIMIT * tanh(z / LATENT_LIMIT)` first."""


class TAEF2(ModelMixin, ConfigMixin):
    """An autoencoder with the interface of those of diffusers: images in [-1, 1].

    Args:
        latent_channels: of a cell.
        width: channels everywhere else; a multiple of 4.
    """

    @register_to_config
    def __init__(self, latent_channels: int = 32, width: int = 64) -> None:
        super().__init__()
        encoder: list[nn.Module] = [_conv(3, width), Block(width)]
        decoder: list[nn.Module] = [_conv(latent_channels, width), nn.ReLU()]
        for level in range(NUM_LEVELS):
            encoder.append(_conv(width, width, stride=2, bias=False))
            encoder += [Block(width, pooled=level == NUM_LEVELS - 1) for _ in range(3)]
            decoder += [Block(width, pooled=level == 0) for _ in range(3)]
            decoder += [nn.Upsample(scale_factor=2), _conv(width, width, bias=False)]
        self.encoder = nn.Sequential(*encoder, _conv(width, latent_channels))
        self.decoder = nn.Sequential(*decoder, Block(width), _conv(width, 3))

    def encode(self, x: Float[Tensor, "n 3 h w"]) -> AutoencoderTinyOutput:
        """Return latents (n c h/8 w/8) of about unit scale, as `.latents`."""
        return AutoencoderTinyOutput(latents=self.encoder(x / 2.0 + 0.5))

    def decode(self, z: Float[Tensor, "n c h w"]) -> DecoderOutput:
        """Return images, as `.sample`; they may leave [-1, 1] a little."""
        limited = LATENT_LIMIT * torch.tanh(z / LATENT_LIMIT)
        return DecoderOutput(sample=2.0 * self.decoder(limited) - 1.0)

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor]) -> "TAEF2":
        """Build the network that published weights belong to.

        Args:
            weights: by the names of `taef2.safetensors`: `encoder.layers.0.weight`, ...

        Raises:
            ValueError: they are not those of a TAEF2.
        """
        names = {name: name.replace(".layers.", ".", 1) for name in weights}
        try:
            first, last = weights["encoder.layers.0.weight"], weights["decoder.layers.0.weight"]
            autoencoder = cls(latent_channels=last.shape[1], width=first.shape[0])
            autoencoder.load_state_dict({names[name]: weights[name] for name in weights})
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"these are no weights of TAEF2: {error}") from error
        return autoencoder


class Block(nn.Module):
    """Three convolutions beside a shortcut; pooled ones first add a normalised wide branch."""

    def __init__(self, width: int, *, pooled: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )
        self.pool = None
        if pooled:
            self.pool = nn.Sequential(
                nn.Conv2d(width, 4 * width, 1, bias=False),
                nn.GroupNorm(4, 4 * width),
                nn.ReLU(),
                nn.Conv2d(4 * width, width, 1, bias=False),
            )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(x + self.conv(x))


def _conv(inputs: int, outputs: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, stride=stride, bias=bias)
