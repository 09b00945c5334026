"""Whether a result shows what its caption names: the colour by a palette, the rest by a classifier.

The classifier sees rgb and normal images of all views and learns from training renders alone. It is
a measuring instrument: its own accuracy on true renders that training held back, and on the same
renders after a round trip through the image autoencoder, stands beside whatever it measures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import safetensors
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from safetensors.torch import load_file, save_file
from skimage.color import rgb2lab
from torch import Tensor, nn
from torch.nn import functional

from data_pipeline.contract import UserError

SIDE_PX = 64
"""Side at which the classifier sees an image; larger ones are averaged down."""

RETRIEVAL_PX = 16
"""Side at which images are compared to find the nearest one."""

NOTHING = "nothing"
"""The colour of an image without foreground."""

Palette = Mapping[str, tuple[int, int, int]]
"""sRGB from 0 to 255 by the name of a colour."""


def dominant_colour(
    rgb: Float[ndarray, "*n h w 3"],
    hit: Bool[ndarray, "*n h w"],
    palette: Palette,
    ignore: str = "",
) -> str:
    """Return the named colour that most foreground pixels are nearest to, in CIELAB.

    Args:
        rgb: sRGB in [0, 1].
        hit: foreground.
        palette: the names to choose from.
        ignore: a name that does not count, such as the colour of a pattern: a chair with white
            checkers is half white, whatever its colour.
    """
    pixels = np.clip(rgb[hit], 0.0, 1.0)
    if not len(pixels):
        return NOTHING
    table = rgb2lab(np.array(list(palette.values())) / 255.0)
    nearest = np.linalg.norm(rgb2lab(pixels)[:, None] - table, axis=-1).argmin(axis=1)
    count = np.bincount(nearest, minlength=len(palette))
    if ignore in palette:
        count[list(palette).index(ignore)] = 0
    return list(palette)[int(count.argmax())] if count.any() else NOTHING


class AttributeClassifier(nn.Module):
    """Names attributes of an asset, such as category and pattern, from its rgb and normal images.

    A small convolutional network reads every view. Mean and deviation of all its layers over the
    foreground, fine layers for patterns and coarse ones for shapes, are averaged over the views and
    go through one linear layer per attribute, so any number of views will do.

    Args:
        labels: the values of every attribute, in the order of the network's outputs.
        width: channels of the first layer.
    """

    def __init__(self, labels: Mapping[str, Sequence[str]], width: int = 24) -> None:
        super().__init__()
        self.labels = {key: tuple(values) for key, values in labels.items()}
        sizes = [6, width, 2 * width, 4 * width, 4 * width]
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 5 if before == 6 else 3, padding="same"),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                nn.MaxPool2d(2),
            )
            for before, after in pairwise(sizes)
        )
        self.heads = nn.ModuleDict(
            {key: nn.Linear(2 * sum(sizes[1:]), len(values)) for key, values in self.labels.items()}
        )

    def forward(self, images: Float[Tensor, "b v 6 h w"]) -> dict[str, Float[Tensor, "b k"]]:
        """Return the logits of every attribute.

        Args:
            images: rgb on white, then normals with 0 where nothing is hit; both in [-1, 1].
        """
        flat = functional.interpolate(images.flatten(0, 1), size=SIDE_PX, mode="area")
        hit = (flat[:, 3:].norm(dim=1, keepdim=True) > 0.5).float()
        statistics = []
        for layer in self.layers:
            flat = layer(flat)
            share = functional.interpolate(hit, size=flat.shape[-1], mode="area")
            weight = share / share.sum(dim=(2, 3), keepdim=True).clamp(min=1.0)
            mean = (flat * weight).sum(dim=(2, 3), keepdim=True)
            variance = ((flat - mean) ** 2 * weight).sum(dim=(2, 3))
            statistics += [mean.flatten(1), (variance + 1e-5).sqrt()]
        features = torch.cat(statistics, dim=1).unflatten(0, images.shape[:2]).mean(dim=1)
        return {key: head(features) for key, head in self.heads.items()}

    @torch.inference_mode()
    def name(self, images: Float[Tensor, "b v 6 h w"]) -> list[dict[str, str]]:
        """Return the likeliest value of every attribute, for each asset."""
        chosen = {key: logits.argmax(dim=1).tolist() for key, logits in self(images).items()}
        return [
            {key: self.labels[key][indices[i]] for key, indices in chosen.items()}
            for i in range(len(images))
        ]

    def save(self, path: Path) -> None:
        """Write weights and labels as safetensors."""
        metadata = {key: "\n".join(values) for key, values in self.labels.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), path, metadata)

    @classmethod
    def load(cls, path: Path) -> "AttributeClassifier":
        """Read what `save` wrote.

        Raises:
            UserError: it cannot be read.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            classifier = cls({key: text.split("\n") for key, text in metadata.items()})
            classifier.load_state_dict(load_file(path))
        except (OSError, safetensors.SafetensorError, RuntimeError) as error:
            raise UserError(f"{path} holds no classifier: delete it, and it is trained anew") from (
                error
            )
        return classifier.eval()


def train_classifier(
    images: Float[Tensor, "n v 6 h w"],
    attributes: Sequence[Mapping[str, str]],
    labels: Mapping[str, Sequence[str]],
    *,
    steps: int = 600,
    batch: int = 16,
    seed: int = 0,
) -> AttributeClassifier:
    """Train a classifier on renders.

    Colours are permuted and dimmed, images shifted, blurred and noised, and views left out, so that
    colour tells nothing and small faults of a generated image do not either.

    Args:
        images: as `AttributeClassifier.forward` takes them.
        attributes: the values of every asset.
        labels: all values of every attribute.
        steps: of training.
        batch: assets in a step.
        seed: of weights and order.
    """
    targets = {
        key: torch.tensor([values.index(each[key]) for each in attributes])
        for key, values in ((key, list(values)) for key, values in labels.items())
    }
    small = functional.interpolate(images.flatten(0, 1), size=SIDE_PX, mode="area")
    small = small.unflatten(0, images.shape[:2])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = AttributeClassifier(labels)
        optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for _ in range(steps):
            chosen = torch.randint(len(small), (batch,))
            logits = classifier(_augmented(small[chosen]))
            loss = torch.stack(
                [
                    functional.cross_entropy(logits[key], targets[key][chosen], label_smoothing=0.1)
                    for key in logits
                ]
            ).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier.eval()


def _augmented(images: Float[Tensor, "b v 6 h w"]) -> Float[Tensor, "b some 6 h w"]:
    """Return training images that show the same attributes in another way."""
    batch, views = images.shape[:2]
    out = images[:, torch.randperm(views)[: max(2, int(torch.randint(1, views + 1, ())))]].clone()
    for i in range(batch):
        rgb = out[i, :, torch.randperm(3)]
        dim = 0.7 + 0.3 * torch.rand(3, 1, 1)
        out[i, :, :3] = 1.0 - (1.0 - rgb) * dim  # white, the background, stays white
    shift = torch.randint(-4, 5, (2,)).tolist()
    flat = out.flatten(0, 1)
    background = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])[:, None, None]
    flat = torch.roll(flat - background, shift, dims=(2, 3)) + background  # its border is empty
    if torch.rand(()) < 0.5:
        flat = functional.avg_pool2d(flat, 3, stride=1, padding=1, count_include_pad=False)
    flat = flat + 0.1 * torch.rand(()) * torch.randn_like(flat)
    return flat.unflatten(0, out.shape[:2])


@dataclass(frozen=True)
class Nearest:
    """The training asset whose images come closest.

    Args:
        index: its number.
        distance: root mean squared difference of all views' images, in [0, 2].
    """

    index: int
    distance: float


def nearest_images(
    images: Float[Tensor, "n v 6 h w"], training: Float[Tensor, "t v 6 h w"]
) -> list[Nearest]:
    """Return the nearest training asset of each, to see whether a sample is but a copy.

    Images are averaged down to `RETRIEVAL_PX` first: a shift of a pixel is no difference.
    """
    mine, theirs = (
        functional.interpolate(each.flatten(0, 1), size=RETRIEVAL_PX, mode="area")
        .unflatten(0, each.shape[:2])
        .flatten(1)
        for each in (images, training)
    )
    distance = torch.cdist(mine, theirs) / mine.shape[1] ** 0.5
    best = distance.min(dim=1)
    return [
        Nearest(index, value)
        for index, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def confusion(pairs: Sequence[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Return how often each measured value came out for each true one: `{true: {measured: n}}`."""
    table: dict[str, dict[str, int]] = {}
    for true, measured in sorted(pairs):
        row = table.setdefault(true, {})
        row[measured] = row.get(measured, 0) + 1
    return table
