"""Stable Diffusion 3 and 3.5: modalities in batch rows that see each other in joint attention.

The class modulates per batch row. So every modality of a sample is a row, with its own timestep;
references, if any, are one more. In the joint attention of a block the queries of all rows of a
sample meet the keys and values of all of them and of the one text; the second attention that SD3.5
has in some blocks (`attn2`) stays inside a row, as in pretraining it was inside an image. With one
row this is the stock `forward()` (tests/unit/test_sd3.py).
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention import JointTransformerBlock
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from data_pipeline.contract import UserError
from modules.networks.adapters import Route, Router, Stream
from modules.networks.backbone import Backbone

TEXT_LAYERS = (".add_q_proj", ".add_k_proj", ".add_v_proj", ".to_add_out", ".ff_context.")
MODULATION_LAYERS = (".norm1.", ".norm1_context.")


PRETRAINED_SHIFT = 3.0
"""Of the scheduler of SD3 and SD3.5, at every size."""


class Sd3Backbone(Backbone):
    """SD3.5-medium and its relatives.

    Text is that of CLIP and T5 beside each other, with a pooled embedding of CLIP. All images of a
    sample share the sinusoidal positions of one image, cropped from the middle of the model's grid:
    only the denoiser's embeddings tell views apart.

    Args:
        transformer: to run. Its blocks are replaced by blocks that take rows.
        origin: see `Backbone`.
    """

    transformer_class = SD3Transformer2DModel

    def __init__(
        self, transformer: SD3Transformer2DModel, origin: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(transformer, origin)
        blocks: Any = transformer.transformer_blocks
        for block in blocks:
            block.__class__ = RowsBlock
            block.router = self.router

    @property
    def channels(self) -> int:
        return self.transformer.config["in_channels"] * self._patch**2

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
        return PRETRAINED_SHIFT

    def streams(self) -> dict[str, Stream]:
        return {
            name: "text" if any(word in name for word in TEXT_LAYERS) else "image"
            for name, layer in self.transformer.named_modules()
            if name.startswith("transformer_blocks.")
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
            raise UserError(
                "SD3 takes a pooled text embedding beside that of the tokens: give both"
            )
        model: Any = self.transformer
        num_rows, num_views, _, *size = latents.shape[1:]
        num_tokens = num_views * size[0] * size[1]
        route = Route(
            num_modalities=num_rows, num_tokens=num_tokens, num_text=text.shape[1], in_rows=True
        )
        pooled = pooled.to(self._dtype)
        times = timesteps.float() * 1000
        text_time = model.time_text_embed(text_timesteps.float() * 1000, pooled)
        # As in the stock pass, each modality alone: products of other shapes round otherwise.
        of_rows = [model.time_text_embed(time, pooled) for time in times.unbind(1)]
        time = torch.stack(of_rows, dim=1).flatten(0, 1)  # (b m) d

        image = self._embed(latents.flatten(0, 2)).unflatten(0, latents.shape[:3])  # b m v s d
        if embedding is not None:
            image = image + embedding[:, :, :, None].to(image.dtype)
        image = image.flatten(0, 1).flatten(1, 2)
        extra = None
        if references is not None:
            count = references.shape[1]
            extra = self._embed(references.flatten(0, 1)).unflatten(0, (-1, count)).flatten(1, 2)
        words = model.context_embedder(text.to(self._dtype))
        for block in model.transformer_blocks:
            image, extra, words = self.call(route, block, image, extra, words, time, text_time)
        prediction = model.proj_out(model.norm_out(image, time))
        cells = prediction.unflatten(-1, (self._patch, self._patch, -1)).movedim(-1, -3).flatten(-3)
        images = cells.unflatten(1, (num_views, *size)).unflatten(0, (-1, num_rows))
        return images.movedim(-1, 3)

    def _embed(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n s d"]:
        """Return the tokens of images, with their positions."""
        unpacked = functional.pixel_shuffle(latents.to(self._dtype), self._patch)
        largest = self.transformer.config["pos_embed_max_size"]
        if max(latents.shape[2:]) > largest:
            raise UserError(
                f"this SD3 has positions for {largest} x {largest} tokens, not for "
                f"{latents.shape[2]} x {latents.shape[3]}: encode smaller images"
            )
        return self.transformer.pos_embed(unpacked)

    @property
    def _patch(self) -> int:
        return self.transformer.config["patch_size"]

    @property
    def _dtype(self) -> torch.dtype:
        return self.transformer.pos_embed.proj.weight.dtype


class RowsBlock(JointTransformerBlock):
    """A block of SD3 whose image rows share keys and values, and whose text has its own timestep.

    Only its `forward` differs from the class of which its parameters are.
    """

    router: Router
    attn: Any
    attn2: Any
    norm2_context: Any
    ff_context: Any

    def forward(
        self,
        image: Float[Tensor, "rows s d"],
        references: Float[Tensor, "b r d"] | None,
        words: Float[Tensor, "b k d"],
        time: Float[Tensor, "rows d"],
        text_time: Float[Tensor, "b d"],
    ) -> tuple[Float[Tensor, "rows s d"], Float[Tensor, "b r d"] | None, Float[Tensor, "b k d"]]:
        """Return the streams behind the block.

        Args:
            image: one row per sample and modality, modalities fastest: `(b m) s d`.
            references: clean images that are looked at.
            words: the text.
            time: embedding of each image row's timestep.
            text_time: embedding of the timestep of text and references.
        """
        route = self.router.route
        assert route is not None
        attn = self.attn
        normed, of_image = self._modulate(image, time)
        parts = [[each.reshape(len(words), -1, each.shape[-1]) for each in _project(attn, normed)]]
        if references is not None:
            self.router.route = _without_modalities(route)
            normed, of_references = self._modulate(references, text_time)
            parts.append(_project(attn, normed))
        if self.context_pre_only:  # the last block: text goes no further
            normed, of_words = self.norm1_context(words, text_time), []
        else:
            normed, *of_words = self.norm1_context(words, emb=text_time)
        parts.append(_project_text(attn, normed))

        query, key, value = (torch.cat(each, dim=1) for each in zip(*parts, strict=True))
        mixed = list(_attend(attn, query, key, value).split([p[0].shape[1] for p in parts], dim=1))

        if references is not None:
            references = self._leave(references, mixed[1], of_references)
        self.router.route = route
        image = self._leave(image, mixed[0].reshape(image.shape), of_image)
        if self.context_pre_only:
            return image, references, words
        gate, shift, scale, gate_mlp = (each[:, None] for each in of_words)
        words = words + gate * attn.to_add_out(mixed[-1])
        normed = self.norm2_context(words) * (1 + scale) + shift
        return image, references, words + gate_mlp * self.ff_context(normed)

    def _modulate(
        self, tokens: Float[Tensor, "rows s d"], time: Float[Tensor, "rows d"]
    ) -> tuple[Float[Tensor, "rows s d"], list[Tensor]]:
        """Return the joint attention's input, and what `_leave` needs."""
        normed, *rest = self.norm1(tokens, emb=time)
        return normed, rest

    def _leave(
        self,
        tokens: Float[Tensor, "rows s d"],
        mixed: Float[Tensor, "rows s d"],
        rest: list[Tensor],
    ) -> Float[Tensor, "rows s d"]:
        """Return image tokens behind both attentions and the feed-forward layers."""
        gate, shift, scale, gate_mlp = (each[:, None] for each in rest[:4])
        tokens = tokens + gate * self.attn.to_out[0](mixed)
        if self.use_dual_attention:
            normed, gate = rest[4], rest[5][:, None]
            own = self.attn2
            tokens = tokens + gate * own.to_out[0](_attend(own, *_project(own, normed)))
        normed = self.norm2(tokens) * (1 + scale) + shift
        return tokens + gate_mlp * self.ff(normed)


def _without_modalities(route: Route) -> Route:
    return Route(num_modalities=0, num_tokens=0, num_text=route.num_text, in_rows=True)


def _project(attn: Any, tokens: Float[Tensor, "rows s d"]) -> list[Float[Tensor, "rows s d2"]]:
    """Return query, key and value of image tokens."""
    query, key, value = attn.to_q(tokens), attn.to_k(tokens), attn.to_v(tokens)
    return [_norm(attn, attn.norm_q, query), _norm(attn, attn.norm_k, key), value]


def _project_text(attn: Any, words: Float[Tensor, "b k d"]) -> list[Float[Tensor, "b k d2"]]:
    """Return query, key and value of text tokens."""
    query, key, value = attn.add_q_proj(words), attn.add_k_proj(words), attn.add_v_proj(words)
    return [_norm(attn, attn.norm_added_q, query), _norm(attn, attn.norm_added_k, key), value]


def _norm(
    attn: Any, norm: nn.Module | None, tokens: Float[Tensor, "rows s d"]
) -> Float[Tensor, "rows s d"]:
    """Normalise each head on its own; models without such a norm (SD3) have None."""
    return tokens if norm is None else norm(tokens.unflatten(-1, (attn.heads, -1))).flatten(2)


def _attend(
    attn: Any,
    query: Float[Tensor, "rows s d"],
    key: Float[Tensor, "rows s d"],
    value: Float[Tensor, "rows s d"],
) -> Float[Tensor, "rows s d"]:
    """Attend over all tokens of a row, without a mask: torch picks its flash kernel if it can."""
    query, key, value = (
        t.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for t in (query, key, value)
    )
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
