"""FLUX.2: its blocks, driven so that every modality has its own timestep and rows own positions.

The class's `forward()` takes one timestep per row, row 0's positions for the whole batch, and its
last norm one embedding per row. Here each modality is modulated by its own timestep, in every block
and in the last norm. With equal timesteps this is the stock `forward()` (tests/unit/test_flux2.py).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import Flux2Transformer2DModel
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from modules.networks.adapters import Route, Stream
from modules.networks.backbone import Backbone

VIEW_STRIDE = 10
"""Rotary T of slot i is `10 * i`: FLUX.2's pipeline numbers its reference images so."""

TEXT_LAYERS = (".add_q_proj", ".add_k_proj", ".add_v_proj", ".to_add_out", ".ff_context.")
"""What names of layers of the text's stream hold, in FLUX.2 and FLUX.1."""

Rotary = tuple[Tensor, Tensor]
"""Cosine and sine, each `#b s d`."""


class Flux2Backbone(Backbone):
    """FLUX.2 [klein] base and [dev]; also the tiny model, which is the same class from scratch.

    Text is that of Qwen3 (klein) or Mistral (dev): per token, three layers side by side. Padding is
    attended like any other token, as in pretraining.

    Args:
        transformer: to run. Its attention processors are replaced.
        origin: see `Backbone`.
        guidance: scale that a guidance-distilled model ([dev]) is told; others take none.
    """

    transformer_class = Flux2Transformer2DModel

    def __init__(
        self,
        transformer: Flux2Transformer2DModel,
        origin: Mapping[str, Any] | None = None,
        guidance: float = 1.0,
    ) -> None:
        super().__init__(transformer, origin)
        self.guidance = guidance
        model: Any = transformer
        for block in model.transformer_blocks:
            block.attn.set_processor(DoubleAttention())
        for block in model.single_transformer_blocks:
            block.attn.set_processor(SingleAttention())

    @property
    def channels(self) -> int:
        return self.transformer.config["in_channels"]

    @property
    def width(self) -> int:
        return self.transformer.inner_dim

    @property
    def text_width(self) -> int:
        return self.transformer.config["joint_attention_dim"]

    def sampling_shift(self, num_tokens: int, num_steps: int) -> float:
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu  # takes seconds

        return math.exp(compute_empirical_mu(num_tokens, num_steps))

    def streams(self) -> dict[str, Stream]:
        def stream(name: str) -> Stream:
            if name.startswith("single_transformer_blocks."):
                return "joint"
            return "text" if any(word in name for word in TEXT_LAYERS) else "image"

        blocks = ("transformer_blocks.", "single_transformer_blocks.")
        layers = self.transformer.named_modules()
        return {
            name: stream(name)
            for name, layer in layers
            if name.startswith(blocks) and isinstance(layer, nn.Linear)
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
        model: Any = self.transformer
        tokens = latents.movedim(3, -1)
        grid, num_text = tokens.shape[1:5], text.shape[1]
        num_tokens, num_references = grid[1:].numel(), 0
        positions = [text_positions(num_text, tokens.device)]
        positions += [image_positions(slots, *grid[2:])] * grid[0]
        tokens = tokens.flatten(1, 4)
        if references is not None:
            positions.append(image_positions(reference_slots[None], *references.shape[3:]))
            tokens = torch.cat([tokens, references.movedim(2, -1).flatten(1, 3)], dim=1)
            num_references = positions[-1].shape[1]
        rotary = rotary_embedding(model.pos_embed, positions)
        route = Route(num_modalities=grid[0], num_tokens=num_tokens, num_text=num_text)

        # Rows of one timestep go through each small layer alone, as in the stock pass: bit-equal.
        text_time = self._embed_time(text_timesteps)
        times = [(self._embed_time(t), num_tokens) for t in timesteps.unbind(1)]
        times += [(text_time, num_references)] if num_references else []

        image = model.x_embedder(tokens.to(self._dtype))
        if embedding is not None:
            own = embedding[:, :, :, None, None].expand(-1, -1, -1, *grid[2:], -1).flatten(1, 4)
            image = image + functional.pad(own, (0, 0, 0, num_references)).to(image.dtype)
        words = model.context_embedder(text.to(self._dtype))
        image_modulation = _per_token(model.double_stream_modulation_img, times)
        text_modulation = model.double_stream_modulation_txt(text_time)
        for block in model.transformer_blocks:
            words, image = self.call(
                route, block, image, words, image_modulation, text_modulation, rotary
            )
        stream = torch.cat([words, image], dim=1)
        modulation = _per_token(model.single_stream_modulation, [(text_time, num_text), *times])
        for block in model.single_transformer_blocks:
            stream = self.call(route, block, stream, None, modulation, rotary)
        image = stream[:, num_text:]

        # AdaLayerNormContinuous.forward, with one embedding per modality instead of one per row.
        norm = model.norm_out
        scale_shift = _per_token(lambda time: norm.linear(norm.silu(time)), times)
        scale, shift = scale_shift.chunk(2, dim=-1)
        prediction = model.proj_out(norm.norm(image) * (1 + scale) + shift)
        return prediction[:, : grid.numel()].unflatten(1, grid).movedim(-1, 3)

    @property
    def _dtype(self) -> torch.dtype:
        return self.transformer.x_embedder.weight.dtype

    def _embed_time(self, timesteps: Float[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Embed noise levels; the sinusoids in float32, whatever the weights are."""
        embedder: Any = self.transformer.time_guidance_embed

        def sinusoids(values: Tensor) -> Tensor:
            return embedder.time_proj(values.float() * 1000).to(self._dtype)

        time = embedder.timestep_embedder(sinusoids(timesteps))
        if embedder.guidance_embedder is None:
            return time
        guidance = torch.full_like(timesteps, self.guidance)
        return time + embedder.guidance_embedder(sinusoids(guidance))


def rotary_embedding(
    pos_embed: nn.Module, positions: Sequence[Float[Tensor, "_ _ axes"]]
) -> Rotary:
    """Return the rotary embedding of consecutive tokens; positions of one row stand for all."""
    rows = max(len(part) for part in positions)
    ids = torch.cat([part.expand(rows, -1, -1) for part in positions], dim=1)
    cos, sin = pos_embed(ids.flatten(0, 1))
    return cos.unflatten(0, ids.shape[:2]), sin.unflatten(0, ids.shape[:2])


def image_positions(
    slots: Int[Tensor, "rows v"], height: int, width: int
) -> Float[Tensor, "rows s 4"]:
    """Return the rotary positions (T, h, w, l) of the tokens of one modality, or of references."""
    rows, num_slots = slots.shape
    positions = torch.zeros(rows, num_slots, height, width, 4, device=slots.device)
    positions[..., 0] = VIEW_STRIDE * slots[:, :, None, None]
    positions[..., 1] = torch.arange(height, device=slots.device)[:, None]
    positions[..., 2] = torch.arange(width, device=slots.device)
    return positions.flatten(1, 3)


def text_positions(num_tokens: int, device: torch.device) -> Float[Tensor, "1 k 4"]:
    """Return the rotary positions (0, 0, 0, l) of text tokens."""
    positions = torch.zeros(1, num_tokens, 4, device=device)
    positions[..., 3] = torch.arange(num_tokens, device=device)
    return positions


def _per_token(
    modulate: Callable[[Tensor], Tensor], times: Sequence[tuple[Float[Tensor, "b d"], int]]
) -> Float[Tensor, "b s d2"]:
    """Return the modulation of consecutive tokens: so many of each time embedding."""
    return torch.cat([modulate(time)[:, None].expand(-1, n, -1) for time, n in times], dim=1)


class DoubleAttention:
    """Attention of a block with two streams: the stock one, but with positions per row."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "b s d"],
        encoder_hidden_states: Float[Tensor, "b k d"],
        attention_mask: None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> tuple[Float[Tensor, "b s d"], Float[Tensor, "b k d"]]:
        image, text = hidden_states, encoder_hidden_states
        num_text = text.shape[1]
        text_query = attn.norm_added_q(split_heads(attn, attn.add_q_proj(text)))
        text_key = attn.norm_added_k(split_heads(attn, attn.add_k_proj(text)))
        text_value = split_heads(attn, attn.add_v_proj(text))
        query = attn.norm_q(split_heads(attn, attn.to_q(image)))
        key = attn.norm_k(split_heads(attn, attn.to_k(image)))
        value = split_heads(attn, attn.to_v(image))
        mixed = attend(
            torch.cat([text_query, query], dim=1),
            torch.cat([text_key, key], dim=1),
            torch.cat([text_value, value], dim=1),
            image_rotary_emb,
        )
        return attn.to_out[0](mixed[:, num_text:]), attn.to_add_out(mixed[:, :num_text])


class SingleAttention:
    """Attention and feed-forward of a block with one stream, with positions per row."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "b s d"],
        attention_mask: None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> Float[Tensor, "b s d"]:
        fused = attn.to_qkv_mlp_proj(hidden_states)
        *qkv, gated = fused.split([attn.inner_dim] * 3 + [2 * attn.mlp_hidden_dim], dim=-1)
        query, key, value = (split_heads(attn, part) for part in qkv)
        mixed = attend(attn.norm_q(query), attn.norm_k(key), value, image_rotary_emb)
        return attn.to_out(torch.cat([mixed, attn.mlp_act_fn(gated)], dim=-1))


def split_heads(attn: Any, tokens: Float[Tensor, "b s d"]) -> Float[Tensor, "b s n d2"]:
    return tokens.unflatten(-1, (-1, attn.head_dim))


def attend(
    query: Float[Tensor, "b s n d"],
    key: Float[Tensor, "b s n d"],
    value: Float[Tensor, "b s n d"],
    rotary: Rotary | None,
) -> Float[Tensor, "b s d2"]:
    """Attend over all tokens, without a mask: torch picks its flash kernel where there is one."""
    if rotary is not None:
        query, key = _rotate(query, rotary), _rotate(key, rotary)
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def _rotate(tokens: Float[Tensor, "b s n d"], rotary: Rotary) -> Float[Tensor, "b s n d"]:
    cos, sin = (part[:, :, None] for part in rotary)
    real, imaginary = tokens.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-imaginary, real], dim=-1).flatten(-2)
    return (tokens.float() * cos + turned.float() * sin).to(tokens.dtype)
