"""What a denoiser is told beside the noisy latents: text and reference images."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Conditions of a batch; rows of both kinds have equal lengths, so any mix is one batch.

    Absent text is the empty caption. An absent reference is a slot of zeros, and so are its vision
    tokens: a model trained with references always has its slots, so an item does not depend on what
    else is in its batch.

    Args:
        text: embeddings of the captions, padding included.
        pooled: embeddings of whole captions, for backbones that take them.
        references: normalised latents of clean rgb images.
        vision: tokens of the same images by a vision encoder, for denoisers that take them.
    """

    text: Float[Tensor, "b k e"]
    pooled: Float[Tensor, "b p"] | None = None
    references: Float[Tensor, "b r c h w"] | None = None
    vision: Float[Tensor, "b n q"] | None = None

    @property
    def options(self) -> dict[str, Tensor]:
        """Keyword arguments of the denoiser, beside the text: those that there are."""
        found = {"pooled": self.pooled, "references": self.references, "vision": self.vision}
        return {name: tensor for name, tensor in found.items() if tensor is not None}


def join_conditions(first: Conditions, second: Conditions) -> Conditions:
    """Return the conditions of a batch that holds `first`'s rows, then `second`'s."""
    options = {name: torch.cat([t, second.options[name]]) for name, t in first.options.items()}
    return Conditions(text=torch.cat([first.text, second.text]), **options)
