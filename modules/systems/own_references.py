"""Reference images in training: a sample's own views, or nothing (decision 0012)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from data_pipeline.contract import UserError


@dataclass(frozen=True, slots=True)
class SeenViews:
    """Which of its own views each sample sees in which reference slot.

    Args:
        views: one for every slot.
        shown: whether the slot shows it; else it is empty.
    """

    views: Int[Tensor, "b r"]
    shown: Bool[Tensor, "b r"]

    def pick(self, per_view: Float[Tensor, "b v *rest"]) -> Float[Tensor, "b r *rest"]:
        """Return what belongs to the seen views, and zeros for empty slots."""
        rows = torch.arange(len(per_view), device=per_view.device)[:, None]
        shown = self.shown.reshape(*self.shown.shape, *[1] * (per_view.ndim - 2))
        return per_view[rows, self.views] * shown


@dataclass(frozen=True, slots=True)
class OwnReferences:
    """Which samples see which of their own views, in one reference slot or several.

    Args:
        share: of the samples that see any. The others see empty slots; with 0 there is no slot.
        views: that may be seen; None is any.
        num_slots: of every sample. One that sees any sees 1 to `num_slots` of its views, each
            number as likely as the others, all different, in the first slots.

    Raises:
        UserError: the share is none, there is no view, or no slot.
    """

    share: float
    views: Sequence[int] | None = None
    num_slots: int = 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0 or (self.views is not None and not self.views):
            raise UserError(
                f"image_share={self.share} must lie in [0, 1], and image_views={self.views} must "
                "name a view, or be null for any"
            )
        if self.num_slots < 1:
            raise UserError(
                f"num_references={self.num_slots} must be at least 1; image_share=0 trains without"
            )

    def draw(
        self, latents: Float[Tensor, "b m v c h w"], generator: torch.Generator
    ) -> SeenViews | None:
        """Return views drawn for every sample; None without slots."""
        if self.share == 0.0:
            return None
        drawn = {"device": latents.device, "generator": generator}
        views = self._allowed(latents)
        size, slots = len(latents), torch.arange(self.num_slots, device=latents.device)
        order = torch.rand(size, len(views), **drawn).argsort(dim=1)[:, : self.num_slots]
        counts = torch.randint(1, self.num_slots + 1, (size, 1), **drawn)
        sees_any = torch.rand(size, 1, **drawn) < self.share
        return SeenViews(views[order], (slots < counts) & sees_any)

    def first(self, latents: Float[Tensor, "b m v c h w"]) -> SeenViews | None:
        """Return for every sample the first views that may be seen, in all slots."""
        if self.share == 0.0:
            return None
        views = self._allowed(latents)[: self.num_slots].expand(len(latents), -1)
        return SeenViews(views, torch.ones_like(views, dtype=torch.bool))

    def null(self, latents: Float[Tensor, "b m v c h w"]) -> SeenViews | None:
        """Return slots that show nothing."""
        first = self.first(latents)
        return None if first is None else SeenViews(first.views, ~first.shown)

    def _allowed(self, latents: Float[Tensor, "b m v c h w"]) -> Int[Tensor, " n"]:
        views = range(latents.shape[2]) if self.views is None else self.views
        if not set(views) <= set(range(latents.shape[2])):
            raise UserError(
                f"image_views={list(views)}: samples have views 0 to {latents.shape[2] - 1}"
            )
        if len(views) < self.num_slots:
            raise UserError(
                f"num_references={self.num_slots}: there are {len(views)} views to see "
                "(image_views): lower it"
            )
        return torch.tensor(list(views), device=latents.device)
