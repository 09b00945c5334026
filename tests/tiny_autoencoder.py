"""The smallest AutoencoderDC that a patch-linear start accepts: 4 x 4 pixels to a cell."""

from functools import partial

from diffusers import AutoencoderDC

TinyDC = partial(
    AutoencoderDC,
    latent_channels=12,
    encoder_block_out_channels=(16, 16, 64),
    decoder_block_out_channels=(16, 16, 64),
    encoder_layers_per_block=(0, 1, 0),
    decoder_layers_per_block=(0, 1, 1),
    encoder_qkv_multiscales=((), (), ()),
    decoder_qkv_multiscales=((), (), ()),
    encoder_out_shortcut=False,
    decoder_in_shortcut=False,
)
