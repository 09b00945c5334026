"""Rendered samples whose category, colour and pattern are known, and which of them training saw."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from data_pipeline.contract import UserError
from modules.geometry.rasterize import Views
from modules.latents.codec import LatentCodec
from modules.metrics.composition import SIDE_PX
from modules.networks.denoiser_files import trained_on
from modules.reporting.rebuild_cases import StoredSamples

CLASSIFIED = ("category", "pattern")
MEASURED = (*CLASSIFIED, "colour")
"""Attributes of procedural samples."""


@dataclass(frozen=True)
class Rendered:
    """Rendered samples with attributes.

    Args:
        uids: their names.
        captions: what they are called.
        attributes: `category`, `colour`, `pattern` and `pattern_colour` of each.
        images: rgb on white, then normals, in [-1, 1], at `SIDE_PX`.
        decoded: the same after a round trip through an autoencoder; empty without one.
    """

    uids: list[str]
    captions: list[str]
    attributes: list[Mapping[str, str]]
    images: Float[Tensor, "n v 6 h w"]
    decoded: Float[Tensor, "n2 v2 6 h2 w2"]


def read_rendered(
    shard_set: StoredSamples,
    decode_sample: Callable[[dict[str, bytes]], dict[str, Any]],
    indices: Sequence[int],
    codec: LatentCodec | None = None,
) -> Rendered:
    """Read samples of a set, through a codec and back as well if there is one.

    Raises:
        UserError: one names no category, colour and pattern.
    """
    uids, captions, attributes, images, decoded = [], [], [], [], []
    for i in indices:
        members = shard_set.read(i)
        meta = json.loads(members["meta.json"])
        known = meta["source"].get("attributes") or {}
        if missing := [key for key in MEASURED if key not in known]:
            raise UserError(
                f"sample {meta['uid']} names no {', '.join(missing)}: task=text_to_3d measures "
                "sets of source=procedural"
            )
        sample = decode_sample(members)
        uids.append(meta["uid"])
        captions.append(sample["caption"])
        attributes.append(known)
        images.append(classifier_input(sample["images"]))
        if codec is not None:
            batch = sample["images"][None].to(codec.mean.device)
            decoded.append(classifier_input(codec.decode(codec.encode(batch))[0].cpu()))
    trips = torch.stack(decoded) if decoded else torch.empty(0, 0, 6, SIDE_PX, SIDE_PX)
    return Rendered(uids, captions, attributes, torch.stack(images), trips)


def classifier_input(images: Float[Tensor, "m v 3 h w"]) -> Float[Tensor, "v 6 h2 w2"]:
    """Return the rgb and normal of 2.5D images, averaged down to the classifier's side."""
    pair = torch.cat([images[0], images[1]], dim=1).float()
    return functional.interpolate(pair, size=SIDE_PX, mode="area")


def views_input(views: Views) -> Float[Tensor, "v 6 h w"]:
    """Return the same of a mesh's views."""
    pair = np.concatenate([views.rgb * 2.0 - 1.0, views.normal], axis=-1)
    return torch.from_numpy(pair.transpose(0, 3, 1, 2)).float()


def refuse_repeated(
    held_back: Sequence[tuple[str, ...]], training: Sequence[tuple[str, ...]]
) -> None:
    """Raise UserError if training samples show a combination of attributes that is held back."""
    shown = set(training)
    if repeated := sum(asked in shown for asked in held_back if any(asked)):
        raise UserError(
            f"{repeated} of {len(held_back)} held-back captions name what training samples "
            "show as well: measure a set in which no combination returns, such as up to 1000 "
            "samples of source=procedural of one seed"
        )


def check_training_set(denoiser: Path, shards: str) -> list[str]:
    """Return what to know about captions that a denoiser is said never to have seen.

    Args:
        denoiser: exported folder.
        shards: SHA-256 of the manifest of the samples that captions are held back of.

    Raises:
        UserError: it was trained on the latents of other samples.
    """
    known = trained_on(denoiser)
    if known is None:
        return [
            "The pipeline does not say which samples it was trained on: that it never saw these "
            "captions is taken on trust."
        ]
    if known != shards:
        raise UserError(
            f"{denoiser} was trained on other samples (manifest {known[:16]}, not {shards[:16]}), "
            "and may have seen the held-back captions: give the shards that encode.py read for it"
        )
    return [
        "The pipeline was trained on these shards; that it held back as many of them (num_val) is "
        "taken on trust."
    ]


def asked_attributes(shard_set: StoredSamples, i: int) -> tuple[str, ...]:
    """Return category, pattern and colour of a sample, empty where it names none."""
    known = json.loads(shard_set.read(i)["meta.json"])["source"].get("attributes") or {}
    return tuple(known.get(key, "") for key in MEASURED)
