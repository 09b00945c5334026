"""Normals and coords are no photographs: an autoencoder's own statistics may not fit their latents.

A backbone was trained on latents near mean 0 and deviation 1. Where those of normal or coord are
far from that, one scale and one shift for all numbers of the modality bring them there. They are
folded into the mean and std of the spec, so whatever encodes or decodes by it follows. Channels
keep their relative sizes, and rgb stays as the backbone knows it.
"""

import logging
from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from data_pipeline.contract import MODALITIES
from modules.latents.raw_parts import RawPart
from modules.latents.spec import LatentSpec

log = logging.getLogger(__name__)

LARGEST_MEAN, STD_RANGE = 0.3, (0.5, 2.0)
"""A modality is off where its mean is beyond, or its deviation outside."""


def fit_modalities(parts: Iterable[RawPart], spec: LatentSpec, *, apply: bool) -> LatentSpec:
    """Return a spec that normalises normal and coord where the given one does not, with a warning.

    Args:
        parts: the whole set.
        spec: of the autoencoder's own statistics.
        apply: whether to correct what is off; else it is only warned of.
    """
    means, stds = modality_statistics(parts, spec)
    rows = {"mean": list(map(list, spec.mean)), "std": list(map(list, spec.std))}
    said = []
    for i, name in enumerate(MODALITIES):
        mean, std = means[i].item(), stds[i].item()
        if abs(mean) <= LARGEST_MEAN and STD_RANGE[0] <= std <= STD_RANGE[1]:
            continue
        corrects = apply and name != "rgb" and std > 0.0
        done = "corrected" if corrects else "left so (modality_affine=true corrects them)"
        log.warning(
            "latents of %s have mean %.2f and deviation %.2f by the autoencoder's statistics, far "
            "from the 0 and 1 that its backbone was trained on: %s",
            name, mean, std, done if name != "rgb" else "left so, as the backbone knows rgb",
        )  # fmt: skip
        if corrects:
            rows["mean"][i] = [m + s * mean for m, s in zip(spec.mean[i], spec.std[i], strict=True)]
            rows["std"][i] = [s * std for s in spec.std[i]]
            said.append(f"{name} less {mean:.4g}, divided by {std:.4g}")
    return replace(spec, **rows, origin="; ".join([spec.origin, *said]))


def modality_statistics(
    parts: Iterable[RawPart], spec: LatentSpec
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Return mean and standard deviation of all normalised numbers of each modality."""
    mean, std = (torch.tensor(v)[:, None, :, None, None] for v in (spec.mean, spec.std))
    count, total, total_square = 0, torch.zeros(1).double(), torch.zeros(1).double()
    for part in parts:
        latents = ((part.latents - mean) / std).double().transpose(0, 1).flatten(1)
        count += latents.shape[1]
        total = total + latents.sum(dim=1)
        total_square = total_square + latents.square().sum(dim=1)
    means = total / max(count, 1)
    return means, (total_square / max(count, 1) - means.square()).clamp_min(0.0).sqrt()
