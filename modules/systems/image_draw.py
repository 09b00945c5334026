"""Which images of a batch an autoencoder is trained on in a step, and at which scale."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from data_pipeline.contract import MODALITIES, UserError


class DrawnImages(NamedTuple):
    """Single views of single modalities.

    Args:
        images: in [-1, 1].
        hit: exact foreground.
        modality: index into `MODALITIES`.
        axis: unit vector along the camera's axis, in the world.
    """

    images: Float[Tensor, "n 3 h w"]
    hit: Bool[Tensor, "n h w"]
    modality: Int[Tensor, " n"]
    axis: Float[Tensor, "n 3"]


def draw_images(
    batch: dict[str, Any],
    generator: torch.Generator,
    *,
    num_images: int,
    reductions: Sequence[int] = (1,),
    crop_px: int | None = None,
) -> DrawnImages:
    """Draw images of a batch, without replacement.

    Args:
        batch: of `SampleDataset`.
        generator: of all draws.
        num_images: at full size; of images reduced to 1/k of the side, k**2 times as many are
            drawn, if the batch has them.
        reductions: values of k, of which a step draws one. Colours are averaged, as a renderer
            averages them over a pixel; every other image is known at pixel centres and keeps one
            pixel of k x k.
        crop_px: side of a random crop, the same for all images; None: whole views.

    Raises:
        UserError: k does not divide the side of the images.
    """
    images: Tensor = batch["images"]
    num_samples, num_modalities, num_views = images.shape[:3]
    total = num_samples * num_modalities * num_views
    order = torch.randperm(total, device=images.device, generator=generator)

    def below(limit: int) -> int:
        return int(torch.randint(limit, (1,), device=images.device, generator=generator))

    k = reductions[below(len(reductions))] if len(reductions) > 1 else reductions[0]
    chosen = order[: num_images * k**2]
    sample = chosen // (num_modalities * num_views)
    modality, view = chosen // num_views % num_modalities, chosen % num_views
    drawn, hit = images[sample, modality, view], batch["hit"][sample, view]
    if k > 1:
        drawn, hit = _reduced(drawn, hit, modality, k, (below(k), below(k)))
    if crop_px is not None and crop_px < hit.shape[-1]:
        top, left = (below(side - crop_px + 1) for side in hit.shape[-2:])
        window = ..., slice(top, top + crop_px), slice(left, left + crop_px)
        drawn, hit = drawn[window], hit[window]
    axis = batch["camera_to_world"][sample, view, :3, 2]
    return DrawnImages(
        drawn.contiguous(memory_format=torch.channels_last), hit, modality, axis.to(drawn)
    )


def _reduced(
    images: Float[Tensor, "n 3 h w"],
    hit: Bool[Tensor, "n h w"],
    modality: Int[Tensor, " n"],
    k: int,
    offset: tuple[int, int],
) -> tuple[Float[Tensor, "n 3 h2 w2"], Bool[Tensor, "n h2 w2"]]:
    """Return images of 1/k of the side; `offset` says which pixel of k x k is kept."""
    if images.shape[-1] % k:
        raise UserError(f"system.reductions: {k} does not divide {images.shape[-1]} px images")
    pixels = ..., slice(offset[0], None, k), slice(offset[1], None, k)
    is_rgb = (modality == MODALITIES.index("rgb"))[:, None, None, None]
    return torch.where(is_rgb, nn.functional.avg_pool2d(images, k), images[pixels]), hit[pixels]
