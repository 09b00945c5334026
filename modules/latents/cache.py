"""Encode a set of samples once: the statistics of its latents, and the members of latent shards."""

import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data_pipeline.contract import CONVENTIONS_VERSION, UserError
from modules.latents.codec import LatentCodec, encode_images, pack
from modules.latents.spec import LatentSpec, fingerprint

Batches = Callable[[], Iterable[dict[str, Any]]]
"""Starts a pass over the set: batches with `uid`, `captions` and `images` (b m v 3 h w)."""


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


def measure_spec(autoencoder: nn.Module, images: Iterable[Tensor], *, packing: int) -> LatentSpec:
    """Return the spec of an autoencoder's latents on a training set, in batches (b m v 3 h w).

    The mean is taken per modality and packed channel, the standard deviation per modality over all
    its channels. One deviation for all keeps the relative sizes of channels: detail is weaker than
    layout, is covered by noise first and weighs less in the loss, as it does in the image.

    Raises:
        UserError: the images' size does not fit the packing.
    """
    count, total, total_square, shape = 0, torch.zeros(1), torch.zeros(1), None
    for batch in images:
        chunks = batch.flatten(0, 2).split(64)
        raw = torch.cat([encode_images(autoencoder, chunk) for chunk in chunks])
        if raw.shape[-1] % packing:
            raise UserError(
                f"packing={packing} does not divide the {raw.shape[-1]} latent cells of "
                f"{batch.shape[-1]} px images: choose another packing"
            )
        latents = pack(raw.unflatten(0, batch.shape[:3]), packing).double()
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
        autoencoder=fingerprint(autoencoder),
        num_views=shape[2],
        grid=shape[-1],
    )


@torch.no_grad()
def encode_set(
    autoencoder: nn.Module, batches: Batches, *, packing: int
) -> tuple[LatentSpec, Iterator[tuple[str, dict[str, bytes]]]]:
    """Return the set's spec, and an iterator over uid and shard members of every sample.

    The set is read twice, so it need not fit in memory.
    """
    spec = measure_spec(autoencoder, (batch["images"] for batch in batches()), packing=packing)
    return spec, _members(LatentCodec(autoencoder, spec), batches())


def _members(
    codec: LatentCodec, batches: Iterable[dict[str, Any]]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    for batch in batches:
        latents = codec.encode(batch["images"]).to(torch.float16).cpu().numpy()
        for uid, captions, sample in zip(batch["uid"], batch["captions"], latents, strict=True):
            array = io.BytesIO()
            np.save(array, sample)
            meta = {"uid": uid, "captions": captions, "conventions": CONVENTIONS_VERSION}
            text = json.dumps(meta, sort_keys=True, ensure_ascii=False)
            yield uid, {"latents.npy": array.getvalue(), "meta.json": text.encode()}
