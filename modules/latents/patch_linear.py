"""Start an `AutoencoderDC` as the best linear code of its image patches (PCA), then train on.

DC-AE moves pixels into channels (pixel-unshuffle) and carries them along parameter-free shortcuts,
so with the right first values its encoder *is* a linear projection of patches and its decoder the
transpose of it. A linear code fitted to a single batch already has sharp normals and coordinates,
which a random start reaches only after thousands of steps; training then goes on from there.
"""

from itertools import pairwise
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_dc import (
    AutoencoderDC,
    DCDownBlock2d,
    DCUpBlock2d,
    ResBlock,
)
from jaxtyping import Float
from torch import Tensor, nn

LIFT = 16.0
"""Value of the constant channels that keep the decoder's last RMSNorm nearly linear: pixels of at
most 1 beside a constant of 16 change the root mean square by less than 1 %.

They come in as a bias of the last residual block, so that no convolution reads them. One that did
would move its output by up to 16 learning rates per tap and channel in a step of Adam: 64 channels
and 9 taps make that .28 at a rate of 3e-5, in images of range 2."""

RECTIFIER_OFFSET = 1.5
"""Added before the decoder's last ReLU and taken away after it: values above -1.5 pass."""


def start_patch_linear(autoencoder: AutoencoderDC, images: Float[Tensor, "n 3 h w"]) -> None:
    """Set the weights to the principal components of the patches of `images`, in [-1, 1].

    Residual branches start at zero (but with gradient), so the first output is the linear code.

    Raises:
        ValueError: the configuration has a path that averages or repeats channels.
    """
    patch_px = autoencoder.spatial_compression_ratio
    encoder: Any = autoencoder.encoder
    decoder: Any = autoencoder.decoder
    _check_shortcuts_are_exact(autoencoder)
    mean, axes, scale = _principal_axes(images, patch_px, encoder.conv_out.out_channels)
    width, num_values = encoder.conv_out.in_channels, len(mean)

    with torch.no_grad():
        for module in autoencoder.modules():
            if isinstance(module, (DCDownBlock2d, DCUpBlock2d)):
                conv: Any = module.conv
                conv.weight.zero_()
                conv.bias.zero_()
            elif isinstance(module, ResBlock):
                last: Any = module.norm
                last.weight.zero_()
        pixels = encoder.conv_in.conv
        pixels.weight[:3, :, 1, 1] = torch.eye(3)

        encode, decode = axes.new_zeros(axes.shape[1], width), axes.new_zeros(width, axes.shape[1])
        encode[:, :num_values], decode[:num_values] = axes.T / scale, axes * scale
        _set_pointwise(encoder.conv_out, encode, -(mean @ axes) / scale)
        offset = mean.new_zeros(width)
        offset[:num_values] = mean
        _set_pointwise(decoder.conv_in, decode, offset)

        # At half resolution: 12 channels of pixels, then LIFT. Root mean square = LIFT * share.
        num_pixels = 3 * 4
        last_block: Any = decoder.up_blocks[1][-1]
        last_block.norm.bias[num_pixels:] = LIFT
        norm = decoder.norm_out
        share = ((len(norm.weight) - num_pixels) / len(norm.weight)) ** 0.5
        norm.weight.fill_(1.0)
        norm.bias.zero_()
        norm.weight[:num_pixels] = LIFT * share
        norm.bias[:num_pixels] = RECTIFIER_OFFSET
        select = axes.new_zeros(num_pixels, len(norm.weight))
        select[:, :num_pixels] = torch.eye(num_pixels)
        _set_pointwise(
            decoder.conv_out.conv, select, axes.new_full((num_pixels,), -RECTIFIER_OFFSET)
        )


def _principal_axes(
    images: Float[Tensor, "n 3 h w"], patch_px: int, num_axes: int
) -> tuple[Float[Tensor, " d"], Float[Tensor, "d k"], float]:
    """Return mean and leading principal axes of patches, and the projections' root mean square.

    A patch's `d = 3 * patch_px**2` values are in the order of pixel-unshuffles by 2, one after the
    other, which is how the channels of `AutoencoderDC` hold them.
    """
    values = images
    while patch_px > 1:
        values = nn.functional.pixel_unshuffle(values, 2)
        patch_px //= 2
    values = values.movedim(1, -1).flatten(0, -2).double()
    mean = values.mean(dim=0)
    centred = values - mean
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :num_axes]
    scale = (centred @ axes).square().mean().sqrt().item()
    return mean.float(), axes.float(), scale


def _set_pointwise(conv: Any, matrix: Float[Tensor, "o i"], bias: Float[Tensor, " o"]) -> None:
    """Make a 3x3 convolution apply `matrix` to every pixel by itself."""
    conv.weight.zero_()
    conv.weight[:, :, 1, 1] = matrix
    conv.bias.copy_(bias)


def _check_shortcuts_are_exact(autoencoder: AutoencoderDC) -> None:
    config = autoencoder.config
    for side in ("encoder", "decoder"):
        widths, layers = config[f"{side}_block_out_channels"], config[f"{side}_layers_per_block"]
        exact = (
            layers[0] == 0
            and all(layers[1:-1])
            and widths[1] == 16
            and all(wide == 4 * narrow for narrow, wide in pairwise(widths[1:]))
        )
        if not exact:
            raise ValueError(
                f"a patch-linear start needs {side}_block_out_channels (16, 16, 64, 256, ...) and "
                f"{side}_layers_per_block (0, 1 or more, ...), not {widths} and {layers}"
            )
    if config["encoder_out_shortcut"] or config["decoder_in_shortcut"]:
        raise ValueError("a patch-linear start needs both latent shortcuts switched off")
