"""What the demo takes from its samples: prompts to generate from, and a sample to show."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.codec import decode_views
from data_pipeline.command_line import compose
from data_pipeline.contract import make_uid
from data_pipeline.loading.split import held_back
from data_pipeline.shards.manifest import ShardSet
from data_pipeline.sources.patterns import COLOURS, caption
from data_pipeline.sources.shapes import CATEGORIES


@dataclass(frozen=True)
class Prompt:
    """A text to generate from; `in_training`: some sample has exactly this caption."""

    text: str
    in_training: bool

    @property
    def name(self) -> str:
        """Name of its files."""
        return make_uid(self.text)[:60]


def choose_prompts(shards: Path, count: int, *, invent: bool) -> list[Prompt]:
    """Return different prompts: learned captions first, then new combinations.

    Args:
        shards: the samples; of those that training never saw, no caption is taken.
        count: how many.
        invent: replace half of them by combinations of a learned category and colour that no sample
            shows; only for procedural assets, whose captions follow a known grammar.
    """
    texts = learned_captions(shards)
    new = unseen_combinations(texts, count // 2) if invent else []
    wanted = min(count - len(new), len(texts))
    spread = [texts[i * len(texts) // wanted] for i in range(wanted)]
    return [Prompt(text, True) for text in spread] + [Prompt(text, False) for text in new]


def learned_captions(shards: Path) -> list[str]:
    """Return the different captions of the samples that the tiny experiments train on."""
    shard_set = ShardSet(shards, "samples")
    num_val = compose("train", ["experiment=tiny/latent_diffusion"]).data.num_val
    hidden = set(held_back(shard_set.uids, num_val))
    captions: dict[str, None] = {}
    for i in range(len(shard_set)):
        if i not in hidden:
            meta = json.loads(shard_set.read(i)["meta.json"])
            captions.update(dict.fromkeys(meta["captions"][:1]))
    return list(captions)


def pictured_sample(shards: Path, text: str) -> dict[str, Any]:
    """Return what the page shows of the first sample of that caption."""
    shard_set = ShardSet(shards, "samples")
    for i in range(len(shard_set)):
        members = shard_set.read(i)
        meta = json.loads(members["meta.json"])
        if text in meta["captions"]:
            break
    else:
        raise ValueError(f"no sample in {shards} has the caption {text!r}")
    views = [camera["name"] for camera in meta["cameras"]]
    images = {
        name: decode_views(members[f"{name}.png"], len(views))
        for name in ("rgb", "normal", "coord")
    }
    sample = {"uid": meta["uid"], "caption": text, "views": views} | images
    return {"sample": sample, "num_samples": len(shard_set)}


def unseen_combinations(texts: list[str], count: int) -> list[str]:
    """Return captions of a plain surface whose category and colour were learned, but apart."""
    words = [set(text.split()) for text in texts]
    found: list[str] = []
    colours = list(COLOURS)
    for turn, category in enumerate(CATEGORIES):
        near = [own for own in words if set(category.split()) <= own]
        for colour in colours[3 * turn % len(colours) :] + colours:
            with_colour = any(colour in own for own in near)
            known = any(colour in own for own in words)
            text = caption(category, colour, "plain")
            if near and known and not with_colour and text not in texts:
                found.append(text)
                break
    return found[:: max(1, len(found) // max(count, 1))][:count]
