"""FLUX.1: its blocks, driven so that every modality has its own timestep and rows own positions.

Other than FLUX.2, each block modulates by its own layers, and those of the class take one embedding
per batch row. Here a block modulates consecutive groups of tokens, each by its own embedding. With
equal timesteps this is the stock `forward()` (tests/unit/test_flux1.py).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import (
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from jaxtyping import Float, Int
from torch import Tensor, nn

from data_pipeline.contract import UserError
from modules.networks.adapters import Route, Stream
from modules.networks.backbone import Backbone
from modules.networks.flux2 import (
    TEXT_LAYERS,
    DoubleAttention,
    Rotary,
    attend,
    rotary_embedding,
    split_heads,
)

MODULATION_LAYERS = (".norm.", ".norm1.", ".norm1_context.")
Modulation = tuple[Float[Tensor, "b d"], ...]
"""Shifts, scales and gates of one group of tokens."""


class Flux1Backbone(Backbone):
    """FLUX.1 [dev], [schnell] and their relatives.

    Text is that of T5, with a pooled embedding of CLIP.

    Args:
        transformer: to run. Its blocks are replaced by blocks that take groups of tokens.
        origin: see `Backbone`.
        guidance: scale that a guidance-distilled model ([dev]) is told; others take none.
    """

    transformer_class = FluxTransformer2DModel

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        origin: Mapping[str, Any] | None = None,
        guidance: float = 1.0,
    ) -> None:
        super().__init__(transformer, origin)
        self.guidance = guidance
        model: Any = transformer
        for block in model.transformer_blocks:
            block.__class__ = GroupsBlock
            block.attn.set_processor(DoubleAttention())
        for block in model.single_transformer_blocks:
            block.__class__ = GroupsSingleBlock

    @property
    def channels(self) -> int:
        return self.transformer.config["in_channels"]

    @property
    def width(self) -> int:
        return self.transformer.inner_dim

    @property
    def text_width(self) -> int:
        return self.transformer.config["joint_attention_dim"]

    @property
    def pooled_width(self) -> int:
        return self.transformer.config["pooled_projection_dim"]

    def sampling_shift(self, num_tokens: int, num_steps: int) -> float:
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift  # takes seconds

        return math.exp(calculate_shift(num_tokens))

    def streams(self) -> dict[str, Stream]:
        def stream(name: str) -> Stream:
            if name.startswith("single_transformer_blocks."):
                return "joint"
            return "text" if any(word in name for word in TEXT_LAYERS) else "image"

        blocks = ("transformer_blocks.", "single_transformer_blocks.")
        return {
            name: stream(name)
            for name, layer in self.transformer.named_modules()
            if name.startswith(blocks)
            and isinstance(layer, nn.Linear)
            and not any(word in name for word in MODULATION_LAYERS)
        }

    def run(
        self,
        latents: Float[Tensor, "b m v c h w"],
        timesteps: Float[Tensor, "b m"],
        text: Float[Tensor, "b k e"],
        *,
        text_timesteps: Float[Tensor, " b"],
        pooled: Float[Tensor, "b p"] | None,
        embedding: Float[Tensor, "#b m v d"] | None,
        slots: Int[Tensor, "#b v"],
        references: Float[Tensor, "b r c hr wr"] | None,
        reference_slots: Int[Tensor, " r"],
    ) -> Float[Tensor, "b m v c h w"]:
        if pooled is None:
            raise UserError("FLUX.1 takes a pooled text embedding beside that of the tokens")
        model: Any = self.transformer
        tokens = latents.movedim(3, -1)
        grid, num_text = tokens.shape[1:5], text.shape[1]
        lengths = [grid[1:].numel()] * grid[0]
        route = Route(num_modalities=grid[0], num_tokens=lengths[0], num_text=num_text)
        positions = [torch.zeros(1, num_text, 3, device=tokens.device)]
        positions += [image_positions(slots, *grid[2:])] * grid[0]
        text_time = self._embed_time(text_timesteps, pooled)
        times = [self._embed_time(each, pooled) for each in timesteps.unbind(1)]

        image = model.x_embedder(tokens.flatten(1, 4).to(self._dtype))
        if embedding is not None:
            own = embedding[:, :, :, None, None].expand(-1, -1, -1, *grid[2:], -1).flatten(1, 4)
            image = image + own.to(image.dtype)
        if references is not None:
            flat = references.movedim(2, -1).flatten(1, 3)
            image = torch.cat([image, model.x_embedder(flat.to(self._dtype))], dim=1)
            positions.append(image_positions(reference_slots[None], *references.shape[3:]))
            lengths.append(flat.shape[1])
            times.append(text_time)
        rotary = rotary_embedding(model.pos_embed, positions)

        words = model.context_embedder(text.to(self._dtype))
        time = torch.stack(times)  # g b d
        for block in model.transformer_blocks:
            words, image = self.call(route, block, image, words, time, text_time, lengths, rotary)
        stream = torch.cat([words, image], dim=1)
        time = torch.cat([text_time[None], time])
        for block in model.single_transformer_blocks:
            stream = self.call(route, block, stream, time, [num_text, *lengths], rotary)
        image = stream[:, num_text : num_text + grid.numel()]

        norm = model.norm_out
        groups = [norm.linear(norm.silu(each)).chunk(2, dim=-1) for each in times[: grid[0]]]
        scales, shifts = zip(*groups, strict=True)
        prediction = model.proj_out(
            _modulate(norm.norm(image), lengths[: grid[0]], scales=scales, shifts=shifts)
        )
        return prediction.unflatten(1, grid).movedim(-1, 3)

    @property
    def _dtype(self) -> torch.dtype:
        return self.transformer.x_embedder.weight.dtype

    def _embed_time(
        self, timesteps: Float[Tensor, " b"], pooled: Float[Tensor, "b p"]
    ) -> Float[Tensor, "b d"]:
        """Embed noise levels, pooled text, and the guidance scale if the model takes one."""
        embedder: Any = self.transformer.time_text_embed
        told = [timesteps.float() * 1000]
        if self.transformer.config["guidance_embeds"]:
            told.append(torch.full_like(told[0], self.guidance * 1000))
        return embedder(*told, pooled.to(self._dtype))


def image_positions(
    slots: Int[Tensor, "rows v"], height: int, width: int
) -> Float[Tensor, "rows s 3"]:
    """Return the rotary positions (slot, h, w) of the tokens of one modality, or of references.

    Text is at 0 in all of them. Slots are numbered as FLUX.1 Kontext numbers its reference image.
    """
    rows, num_slots = slots.shape
    positions = torch.zeros(rows, num_slots, height, width, 3, device=slots.device)
    positions[..., 0] = slots[:, :, None, None]
    positions[..., 1] = torch.arange(height, device=slots.device)[:, None]
    positions[..., 2] = torch.arange(width, device=slots.device)
    return positions.flatten(1, 3)


class GroupsBlock(FluxTransformerBlock):
    """A block of FLUX.1 with two streams, in which groups of image tokens have own timesteps.

    Only its `forward` differs from the class of which its parameters are.
    """

    def forward(
        self,
        image: Float[Tensor, "b s d"],
        words: Float[Tensor, "b k d"],
        time: Float[Tensor, "g b d"],
        text_time: Float[Tensor, "b d"],
        lengths: list[int],
        rotary: Rotary,
    ) -> tuple[Float[Tensor, "b k d"], Float[Tensor, "b s d"]]:
        """Return text and image behind the block.

        Args:
            image: groups of tokens.
            words: the text.
            time: embedding of each group's timestep.
            text_time: that of the text.
            lengths: tokens of each group.
            rotary: of text and image.
        """
        groups = _modulations(self.norm1, time, 6)
        [of_text] = _modulations(self.norm1_context, text_time[None], 6)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = zip(*groups, strict=True)
        normed = _modulate(self.norm1.norm(image), lengths, scales=scale, shifts=shift)
        normed_words = self.norm1_context.norm(words) * (1 + of_text[1][:, None])
        mixed, mixed_words = self.attn(
            hidden_states=normed,
            encoder_hidden_states=normed_words + of_text[0][:, None],
            image_rotary_emb=rotary,
        )
        image = image + _gate(mixed, lengths, gate)
        normed = _modulate(self.norm2(image), lengths, scales=scale_mlp, shifts=shift_mlp)
        image = image + _gate(self.ff(normed), lengths, gate_mlp)

        words = words + of_text[2][:, None] * mixed_words
        normed = self.norm2_context(words) * (1 + of_text[4][:, None]) + of_text[3][:, None]
        return words + of_text[5][:, None] * self.ff_context(normed), image


class GroupsSingleBlock(FluxSingleTransformerBlock):
    """A block of FLUX.1 with one stream, in which groups of tokens have own timesteps."""

    def forward(
        self,
        stream: Float[Tensor, "b s d"],
        time: Float[Tensor, "g b d"],
        lengths: list[int],
        rotary: Rotary,
    ) -> Float[Tensor, "b s d"]:
        """Return text and image, in one sequence, behind the block; arguments as above."""
        shift, scale, gate = zip(*_modulations(self.norm, time, 3), strict=True)
        normed = _modulate(self.norm.norm(stream), lengths, scales=scale, shifts=shift)
        hidden = self.act_mlp(self.proj_mlp(normed))
        attn: Any = self.attn
        query, key, value = (
            split_heads(attn, project(normed)) for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        mixed = attend(attn.norm_q(query), attn.norm_k(key), value, rotary)
        return stream + _gate(self.proj_out(torch.cat([mixed, hidden], dim=-1)), lengths, gate)


def _modulations(norm: Any, time: Float[Tensor, "g b d"], count: int) -> list[Modulation]:
    """Return `count` vectors for each group; each alone, as in the stock pass: equal to the bit."""
    return [norm.linear(norm.silu(each)).chunk(count, dim=-1) for each in time.unbind(0)]


def _modulate(
    tokens: Float[Tensor, "b s d"],
    lengths: Sequence[int],
    *,
    scales: Sequence[Float[Tensor, "b d"]],
    shifts: Sequence[Float[Tensor, "b d"]],
) -> Float[Tensor, "b s d"]:
    """Scale and shift each group of tokens."""
    groups = zip(tokens.split(list(lengths), dim=1), scales, shifts, strict=True)
    return torch.cat([g * (1 + scale[:, None]) + shift[:, None] for g, scale, shift in groups], 1)


def _gate(
    tokens: Float[Tensor, "b s d"], lengths: Sequence[int], gates: Sequence[Float[Tensor, "b d"]]
) -> Float[Tensor, "b s d"]:
    """Multiply each group of tokens by its gate."""
    groups = zip(tokens.split(list(lengths), dim=1), gates, strict=True)
    return torch.cat([group * gate[:, None] for group, gate in groups], dim=1)
