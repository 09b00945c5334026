"""The joint denoiser: all views and modalities of an asset, and its text, as one sequence."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from diffusers import Flux2Transformer2DModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from data_pipeline.contract import MODALITIES, UserError
from modules.networks.adapters import MixtureOfLoRA
from modules.networks.backbone import Backbone
from modules.networks.flux2 import Flux2Backbone

Layout = Literal["joint", "tiled"]
TEXT_TIMESTEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "largest": lambda timesteps: timesteps.amax(dim=1),
    "mean": lambda timesteps: timesteps.mean(dim=1),
    "rgb": lambda timesteps: timesteps[:, MODALITIES.index("rgb")],
}
"""Rules that make of a sample's noise levels (b m) that of its text and references (b)."""


class JointDenoiser(nn.Module):
    """Denoise the 2.5D latents of whole assets; each modality may have its own noise level.

    In the `joint` layout every image is a slot of one sequence. Same-pixel tokens of the modalities
    share their position; learned embeddings, zero at the start, tell modalities and views apart.
    These are multiplied by the root of the width, so that they grow fast enough: plain ones leave a
    short training with views that come out in each other's modality.

    In the `tiled` layout, the simple baseline, one canvas holds all images: a row of views for each
    modality. The model sees one large image at one noise level.

    Args:
        backbone: runs the blocks.
        num_views: views of the layout.
        layout: `joint` or `tiled`.
        text_timestep: noise level that modulates text and references: the `largest` of a sample's
            modalities, their `mean`, or that of `rgb`. All are the same when modalities are equal.
        vision_width: of the vision tokens that it takes; None: it takes none. A linear layer, zero
            at first, makes text tokens of them, which follow the text. Without vision tokens the
            prediction is that without the layer, bit by bit. With them it is that of a longer text,
            whose new embeddings are zero at first: near the pretrained model's, not equal to it.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_views: int,
        layout: Layout = "joint",
        text_timestep: str = "largest",
        vision_width: int | None = None,
    ) -> None:
        super().__init__()
        adapters = backbone.adapters
        if layout == "tiled" and adapters is not None and adapters.modality_rank:
            raise UserError(
                "a tiled canvas has no modalities: set denoiser.adapters.modality_rank=0"
            )
        if text_timestep not in TEXT_TIMESTEPS:
            raise UserError(
                f"denoiser.text_timestep={text_timestep} must be one of {', '.join(TEXT_TIMESTEPS)}"
            )
        self.backbone = backbone
        self.num_views = num_views
        self.layout: Layout = layout
        self.text_timestep = text_timestep
        if layout == "joint":
            self.modality_embedding = nn.Parameter(torch.zeros(len(MODALITIES), backbone.width))
            self.view_embedding = nn.Parameter(torch.zeros(num_views, backbone.width))
        self.vision: nn.Linear | None = None
        if vision_width is not None:
            self.vision = nn.Linear(vision_width, backbone.text_width)
            nn.init.zeros_(self.vision.weight)
            nn.init.zeros_(self.vision.bias)

    @classmethod
    def from_scratch(
        cls,
        *,
        num_views: int,
        text_timestep: str = "largest",
        vision_width: int | None = None,
        **config: Any,
    ) -> "JointDenoiser":
        """Build an untrained denoiser of FLUX.2's class whose first prediction is zero.

        Args:
            num_views: views of the layout.
            text_timestep: `largest`, `mean` or `rgb`.
            vision_width: of vision tokens; None: none.
            config: keyword arguments of `Flux2Transformer2DModel`.
        """
        transformer = Flux2Transformer2DModel(**config)
        nn.init.zeros_(transformer.proj_out.weight)
        backbone = Flux2Backbone(transformer)
        return cls(backbone, num_views, text_timestep=text_timestep, vision_width=vision_width)

    @classmethod
    def from_pretrained(
        cls,
        *,
        num_views: int,
        backbone: Callable[[], Backbone],
        adapters: MixtureOfLoRA | None = None,
        layout: Layout = "joint",
        text_timestep: str = "largest",
        vision_width: int | None = None,
    ) -> "JointDenoiser":
        """Build a denoiser on a pretrained backbone.

        Args:
            num_views: views of the layout.
            backbone: loads it.
            adapters: what is trained of it; None is full fine-tuning.
            layout: `joint` or `tiled`.
            text_timestep: `largest`, `mean` or `rgb`.
            vision_width: of vision tokens; None: none.
        """
        loaded = backbone()
        adapted = loaded if adapters is None else loaded.adapt(adapters)
        return cls(adapted, num_views, layout, text_timestep, vision_width)

    @property
    def channels(self) -> int:
        """Channels of the packed latents."""
        return self.backbone.channels

    def forward(
        self,
        latents: Float[Tensor, "b m v c h w"],
        timesteps: Float[Tensor, "b m"],
        text: Float[Tensor, "b k e"],
        *,
        pooled: Float[Tensor, "b p"] | None = None,
        references: Float[Tensor, "b r c hr wr"] | None = None,
        vision: Float[Tensor, "b n q"] | None = None,
        views: Int[Tensor, "b v"] | None = None,
    ) -> Float[Tensor, "b m v c h w"]:
        """Return the network's prediction (velocity or clean latents, as trained).

        Args:
            latents: packed, normalised latents, noisy or clean.
            timesteps: noise level per sample and modality, 0 = clean, 1 = pure noise.
            text: text embeddings; every row has the same length, padding included.
            pooled: embedding of the whole text, for backbones with a `pooled_width`.
            references: clean packed latents of images that condition the sample.
            vision: tokens of these images by a vision encoder, one image behind the other.
            views: which view of the layout each one is, per sample (`joint` only); by default all
                in their order.
        """
        if vision is not None:
            assert self.vision is not None
            text = torch.cat([text, self.vision(vision.to(self.vision.weight.dtype))], dim=1)
        if self.layout == "tiled":
            assert views is None
            known = not (timesteps.is_meta or torch.compiler.is_compiling())
            if known and not (timesteps == timesteps[:, :1]).all():
                raise UserError(
                    "a tiled canvas has one noise level: train with system.mix.joint=1 and the "
                    "other shares at 0; it cannot texture a given mesh"
                )
            slots = torch.zeros(1, 1, dtype=torch.long, device=latents.device)
            canvas = _canvas(latents)[:, None, None]
            output = self._run(canvas, timesteps[:, :1], text, pooled, None, slots, references)
            return _images(output[:, 0, 0], latents.shape[1:3])
        every = torch.arange(self.num_views, device=latents.device)
        slots = every[None] if views is None else views
        gain = self.backbone.width**0.5
        embedding = self.view_embedding[slots][:, None] + self.modality_embedding[:, None]
        return self._run(latents, timesteps, text, pooled, gain * embedding, slots, references)

    def _run(
        self,
        latents: Float[Tensor, "b m v c h w"],
        timesteps: Float[Tensor, "b m"],
        text: Float[Tensor, "b k e"],
        pooled: Float[Tensor, "b p"] | None,
        embedding: Float[Tensor, "#b m v d"] | None,
        slots: Int[Tensor, "#b v"],
        references: Float[Tensor, "b r c hr wr"] | None,
    ) -> Float[Tensor, "b m v c h w"]:
        """Run the backbone; references take the slots behind the views."""
        first = self.num_views if self.layout == "joint" else 1
        count = 0 if references is None else references.shape[1]
        output = self.backbone.run(
            latents,
            timesteps,
            text,
            text_timesteps=TEXT_TIMESTEPS[self.text_timestep](timesteps),
            pooled=pooled,
            embedding=embedding,
            slots=slots,
            references=references,
            reference_slots=torch.arange(first, first + count, device=latents.device),
        )
        return output.to(latents.dtype)


def _canvas(latents: Float[Tensor, "b m v c h w"]) -> Float[Tensor, "b c h2 w2"]:
    """Return one image of all: a row for each modality, a column for each view."""
    return latents.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def _images(canvas: Float[Tensor, "b c h2 w2"], grid: torch.Size) -> Float[Tensor, "b m v c h w"]:
    """Undo `_canvas`; `grid` counts modalities and views."""
    return canvas.unflatten(3, (grid[1], -1)).unflatten(2, (grid[0], -1)).permute(0, 2, 4, 1, 3, 5)
