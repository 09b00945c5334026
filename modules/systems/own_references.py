"""Reference images in training: a sample's own views, or nothing (decision 0012)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from data_pipeline.contract import UserError
from modules.losses.flow import RGB


@dataclass(frozen=True, slots=True)
class OwnReferences:
    """Which samples see which of their own views, as rgb latents in one reference slot.

    Args:
        share: of the samples that see one. The others see zeros; with 0 there is no slot at all.
        views: that may be seen; None is any.

    Raises:
        UserError: the share is none, or there is no view.
    """

    share: float
    views: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0 or (self.views is not None and not self.views):
            raise UserError(
                f"image_share={self.share} must lie in [0, 1], and image_views={self.views} must "
                "name a view, or be null for any"
            )

    def draw(
        self, latents: Float[Tensor, "b m v c h w"], generator: torch.Generator
    ) -> Float[Tensor, "b 1 c h w"] | None:
        """Return references drawn for every sample."""
        if self.share == 0.0:
            return None
        drawn = {"device": latents.device, "generator": generator}
        seen = torch.rand(len(latents), **drawn) < self.share
        views = self._allowed(latents)
        views = views[torch.randint(len(views), (len(latents),), **drawn)]
        return _rgb_of(latents, views) * seen[:, None, None, None, None]

    def first(self, latents: Float[Tensor, "b m v c h w"]) -> Float[Tensor, "b 1 c h w"] | None:
        """Return the first view that may be seen of every sample."""
        if self.share == 0.0:
            return None
        return _rgb_of(latents, self._allowed(latents)[:1].expand(len(latents)))

    def null(self, latents: Float[Tensor, "b m v c h w"]) -> Float[Tensor, "b 1 c h w"] | None:
        """Return references that show nothing."""
        return None if self.share == 0.0 else torch.zeros_like(latents[:, RGB, :1])

    def _allowed(self, latents: Float[Tensor, "b m v c h w"]) -> Int[Tensor, " n"]:
        views = range(latents.shape[2]) if self.views is None else self.views
        if not set(views) <= set(range(latents.shape[2])):
            raise UserError(
                f"image_views={list(views)}: samples have views 0 to {latents.shape[2] - 1}"
            )
        return torch.tensor(list(views), device=latents.device)


def _rgb_of(
    latents: Float[Tensor, "b m v c h w"], views: Int[Tensor, " b"]
) -> Float[Tensor, "b 1 c h w"]:
    return latents[torch.arange(len(latents), device=latents.device), RGB, views][:, None]
