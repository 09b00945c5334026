"""FLUX.2's transformer, driven block by block so that every image token has its own timestep.

The class's own `forward()` takes one timestep per row and its last norm one embedding per row. Here
each group of image tokens (a modality) is modulated by its own timestep, in every block and in the
last norm. With equal timesteps this is the stock `forward()` exactly (tests/unit/test_denoiser.py).
"""

from typing import Any

import torch
from diffusers import Flux2Transformer2DModel
from jaxtyping import Float
from torch import Tensor


def run_flux2(
    transformer: Flux2Transformer2DModel,
    tokens: Float[Tensor, "b s d"],
    text: Float[Tensor, "b k e"],
    timesteps: Float[Tensor, "b g"],
    token_ids: Float[Tensor, "s axes"],
    text_ids: Float[Tensor, "k axes"],
) -> Float[Tensor, "b s c"]:
    """Predict for every image token, each under the timestep of its group.

    Args:
        transformer: a model without guidance embedding; only its parts are called.
        tokens: image tokens after `x_embedder`, in `g` contiguous groups of equal length.
        text: text embeddings before `context_embedder`.
        timesteps: noise level of each group in [0, 1], 1 = pure noise. The text stream takes the
            largest of them, which is the noisiest group (clean groups are at 0).
        token_ids: rotary positions (T, h, w, l) of image tokens. They are a function of the layout
            alone, the same in every row; hence no batch axis, which FLUX.2 would ignore anyway.
        text_ids: rotary positions of text tokens.
    """
    num_groups, num_text = timesteps.shape[1], text.shape[1]
    group_length = tokens.shape[1] // num_groups
    time = _embed_time(transformer, timesteps)  # b g d
    text_time = _embed_time(transformer, timesteps.amax(dim=1, keepdim=True))  # b 1 d

    def per_token(groups: Float[Tensor, "b g d2"]) -> Float[Tensor, "b s d2"]:
        return groups.repeat_interleave(group_length, dim=1)

    image_modulation = per_token(transformer.double_stream_modulation_img(time))
    text_modulation = transformer.double_stream_modulation_txt(text_time)
    single_modulation = torch.cat(
        [
            transformer.single_stream_modulation(text_time).expand(-1, num_text, -1),
            per_token(transformer.single_stream_modulation(time)),
        ],
        dim=1,
    )
    rotary = transformer.pos_embed(torch.cat([text_ids, token_ids]))

    text_stream = transformer.context_embedder(text)
    for block in transformer.transformer_blocks:
        text_stream, tokens = _call(
            transformer, block, tokens, text_stream, image_modulation, text_modulation, rotary
        )
    stream = torch.cat([text_stream, tokens], dim=1)
    for block in transformer.single_transformer_blocks:
        stream = _call(transformer, block, stream, None, single_modulation, rotary)
    tokens = stream[:, num_text:]

    # AdaLayerNormContinuous.forward, with one embedding per token instead of one per row.
    norm_out = transformer.norm_out
    scale, shift = per_token(norm_out.linear(norm_out.silu(time).to(tokens.dtype))).chunk(2, dim=-1)
    return transformer.proj_out(norm_out.norm(tokens) * (1 + scale) + shift)


def _embed_time(
    transformer: Flux2Transformer2DModel, timesteps: Float[Tensor, "b g"]
) -> Float[Tensor, "b g d"]:
    embedding = transformer.time_guidance_embed(timesteps.flatten() * 1000, None)
    return embedding.unflatten(0, timesteps.shape)


def _call(transformer: Flux2Transformer2DModel, block: torch.nn.Module, *arguments: object):
    """Run a block, through gradient checkpointing where the transformer has it switched on."""
    if torch.is_grad_enabled() and transformer.gradient_checkpointing:
        checkpointed: Any = transformer._gradient_checkpointing_func
        return checkpointed(block, *arguments)
    return block(*arguments)
