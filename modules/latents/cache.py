"""A cache of latents: what it says of itself, the statistics of its latents, its members."""

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.contract import CONVENTIONS_VERSION, MODALITIES, UserError
from modules.latents.codec import own_statistics
from modules.latents.raw_parts import RawPart
from modules.latents.spec import CARRIED, LatentSpec, encoder_fingerprint


def read_cache(directory: Path) -> dict[str, Any]:
    """Return what a latent cache says of itself: `latent_spec`, `vocabulary`, `inputs`.

    Raises:
        UserError: there is no manifest, or it cannot be read.
    """
    path = directory / "manifest.json"
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}): make the latents with encode.py"
        ) from error
    if manifest.get("kind") != "latents":
        raise UserError(f"{directory} holds no latents: name the folder that encode.py wrote")
    return manifest


def measure_spec(parts: Iterable[RawPart], *, packing: int, autoencoder: str) -> LatentSpec:
    """Return the spec of a set of packed latents.

    The mean is taken per modality and packed channel, the standard deviation per modality over all
    its channels. One deviation for all keeps the relative sizes of channels: detail is weaker than
    layout, is covered by noise first and weighs less in the loss, as it does in the image.

    Args:
        parts: the whole set.
        packing: of the latents.
        autoencoder: fingerprint of the encoder that made them.

    Raises:
        UserError: the set is empty.
    """
    count, total, total_square, shape = 0, torch.zeros(1), torch.zeros(1), None
    for part in parts:
        latents = part.latents.double()
        shape = latents.shape
        total = total + latents.sum(dim=(0, 2, 4, 5))
        total_square = total_square + latents.square().sum(dim=(0, 2, 4, 5))
        count += latents.shape[0] * latents.shape[2] * latents.shape[4] * latents.shape[5]
    if shape is None:
        raise UserError("there is no sample to encode: render and pack some first")
    mean = total / count
    variance = (total_square / count - mean.square()).clamp_min(0.0).mean(dim=1, keepdim=True)
    std = variance.sqrt().clamp_min(1e-6).expand_as(mean)
    return LatentSpec(
        packing=packing,
        mean=mean.tolist(),
        std=std.tolist(),
        origin=f"mean per channel, std per modality, over {count} cells of the training set",
        autoencoder=autoencoder,
        num_views=shape[2],
        grid=shape[-1],
    )


def own_spec(parts: Iterable[RawPart], autoencoder: Any) -> LatentSpec:
    """Return the spec of a set by the statistics that the autoencoder carries (FLUX.2's does).

    Args:
        parts: the set, packed as the autoencoder's statistics are.
        autoencoder: what encoded it.

    Raises:
        UserError: the autoencoder carries none, the packing is another, or the set is empty.
    """
    own = own_statistics(autoencoder)
    if own is None:
        raise UserError(
            f"{type(autoencoder).__name__} carries no statistics of its latents: leave out "
            "statistics=autoencoder"
        )
    first = next(iter(parts), None)
    if first is None:
        raise UserError("there is no sample to encode: render and pack some first")
    packing, mean, std = own
    if first.latents.shape[3] != len(mean):
        raise UserError(f"the autoencoder's statistics are of packing={packing}: give that")
    return LatentSpec(
        packing=packing,
        mean=[mean.tolist()] * len(MODALITIES),
        std=[std.tolist()] * len(MODALITIES),
        origin=CARRIED,
        autoencoder=encoder_fingerprint(autoencoder),
        num_views=first.latents.shape[2],
        grid=first.latents.shape[-1],
    )


def cache_members(
    parts: Iterable[RawPart], spec: LatentSpec
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield uid and shard members of every sample: latents, coverage, metadata.

    Latents are normalised, float16; the coverage of cells is in 255ths; vision tokens float16.
    """
    mean, std = (torch.tensor(values)[:, None, :, None, None] for values in (spec.mean, spec.std))
    for part in parts:
        latents = ((part.latents - mean) / std).to(torch.float16).numpy()
        coverages = (part.coverage * 255.0).round().to(torch.uint8).numpy()
        visions = [{}] * len(latents)
        if part.vision is not None:
            visions = [{"vision.npy": _npy(each)} for each in part.vision.half().numpy()]
        samples = zip(part.uids, part.captions, latents, coverages, visions, strict=True)
        for uid, captions, sample, coverage, vision in samples:
            meta = {"uid": uid, "captions": captions, "conventions": CONVENTIONS_VERSION}
            text = json.dumps(meta, sort_keys=True, ensure_ascii=False)
            arrays = {"latents.npy": _npy(sample), "coverage.npy": _npy(coverage)}
            yield uid, {**arrays, **vision, "meta.json": text.encode()}


def _npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
