"""The compositional text benchmark: captions of held-back samples to meshes, and what they show.

A procedural caption names category, colour and pattern, and no training sample has the three of a
held-back one together. The result is measured: see modules/metrics/composition.py.
"""

import contextlib
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from data_pipeline.contract import UserError, view_layout
from modules.geometry.mesh import load_mesh, save_mesh
from modules.geometry.rasterize import render_mesh
from modules.metrics.coherence import ViewImages, coherence, excess, mesh_normal_deg
from modules.metrics.composition import (
    SIDE_PX,
    AttributeClassifier,
    Palette,
    confusion,
    dominant_colour,
    nearest_images,
    train_classifier,
)
from modules.metrics.fidelity import made_images, view_images
from modules.metrics.scoring import FAILURE_FIGURES, check_seed
from modules.networks.pipeline_folder import stage_folder
from modules.pipelines.generation import TextTo25D
from modules.pipelines.reconstruction import Reconstructor, check_mesh_size
from modules.pipelines.sampling_options import Sampling
from modules.pipelines.text_to_mesh import LAYOUT, check_layout
from modules.reporting.attributed_samples import (
    CLASSIFIED,
    MEASURED,
    asked_attributes,
    check_training_set,
    classifier_input,
    read_rendered,
    refuse_repeated,
    views_input,
)
from modules.reporting.cost import measured
from modules.reporting.evaluation import Case
from modules.reporting.page import write_bytes
from modules.reporting.pictures import to_png
from modules.reporting.rebuild_cases import StoredSamples, folder_digest, spread

log = logging.getLogger(__name__)

RIGHT = (*(f"{key}_right" for key in MEASURED), "attributes_right", "all_right")
"""Figures of a pair: 1 where what was asked for was measured, their mean, and whether all are 1."""

MOST_TRAINING = 4000
"""Training samples that the classifier learns from and the nearest one is looked for among."""


PROTOCOL = ("num_val", "classifier_steps")
"""Options of measuring; the others are of making."""


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How results are made and measured.

    Args:
        steps: of the sampler.
        guidance: its scale.
        grid: cells along the unit cube's side.
        texture_px: side of the texture.
        seed: the first result's seed; every result has its own.
        num_val: samples that training held back (data.num_val).
        classifier_steps: of the classifier's training.
    """

    steps: int
    guidance: float
    grid: int
    texture_px: int
    seed: int
    num_val: int
    classifier_steps: int

    def __post_init__(self) -> None:
        if self.classifier_steps < 1:
            raise UserError(f"classifier_steps={self.classifier_steps} must be at least 1")
        Sampling(steps=self.steps, guidance=self.guidance)  # refused now, not after the training
        check_seed(self.seed)
        check_mesh_size(self.grid, self.texture_px)

    def method(self) -> dict[str, Any]:
        """Return how results are made."""
        return {key: value for key, value in asdict(self).items() if key not in PROTOCOL}

    def protocol(self) -> dict[str, Any]:
        """Return how they are measured, in numbers and words."""
        return {key: getattr(self, key) for key in PROTOCOL} | {
            "cameras": "ortho6, those of training", "resolution_px": SIDE_PX, "light": "unlit",
            "background": "white", "colour": "nearest of the palette in CIELAB",
        }  # fmt: skip


def _right(shown: Mapping[str, str], asked: Mapping[str, str]) -> list[float]:
    """Return 1 for each of `MEASURED` that is shown as asked, else 0."""
    return [float(shown[key] == asked[key]) for key in MEASURED]


class TextBenchmark:
    """Trains the measuring instrument on a set's training part, checks it, and makes the cases.

    Args:
        shard_set: rendered procedural samples, those that the pipeline was trained on.
        decode_sample: that of data_pipeline.loading.samples.
        held_back: numbers of the samples that training never saw.
        palette: the named colours.
        checkpoint: pipeline folder.
        options: how results are made.
        out: folder that takes the classifier, the meshes and the pictures.
        device: of the generator and the reconstruction.

    Attributes:
        inputs: digests of shards and checkpoint.
        notes: sentences on what the figures do not tell.

    Raises:
        UserError: too few samples, samples without attributes, held-back ones whose attributes
            training has seen together, or a pipeline that was trained on other samples.
    """

    def __init__(
        self,
        shard_set: StoredSamples,
        decode_sample: Callable[[dict[str, bytes]], dict[str, Any]],
        held_back: Sequence[int],
        palette: Palette,
        checkpoint: Path,
        options: TextOptions,
        out: Path,
        device: torch.device,
    ) -> None:
        if not held_back:
            raise UserError(
                f"num_val={options.num_val} holds back nothing of {len(shard_set.uids)} samples: "
                "give as much as training did (data.num_val), and at least five samples"
            )
        self.notes = check_training_set(stage_folder(checkpoint, "denoiser"), shard_set.sha256)
        hidden = set(held_back)
        seen = [i for i in range(len(shard_set.uids)) if i not in hidden]
        asked = [asked_attributes(shard_set, i) for i in range(len(shard_set.uids))]
        refuse_repeated([asked[i] for i in held_back], [asked[i] for i in seen])
        seen = seen[:: -(-len(seen) // MOST_TRAINING)]
        self.palette, self.options, self.out = palette, options, out
        self.generate = TextTo25D.from_pretrained(checkpoint).to(device)
        check_layout(self.generate.codec.spec.num_views, checkpoint)
        self.training = read_rendered(shard_set, decode_sample, seen)
        codec = self.generate.codec
        self.held_back = read_rendered(shard_set, decode_sample, held_back, codec)
        self.reconstruct = Reconstructor.from_pretrained(checkpoint, device=device)
        self._true_sample = lambda i: decode_sample(shard_set.read(held_back[i]))
        self.inputs = {"shards": shard_set.sha256, "checkpoint": folder_digest(checkpoint)}
        self.identity = f"{' '.join(self.inputs.values())} {json.dumps(seen)}"
        self.classifier = self._classifier(
            f"{shard_set.sha256} {json.dumps(seen)} {options.classifier_steps}"
        )

    def _classifier(self, identity: str) -> AttributeClassifier:
        """Return the classifier, trained unless an earlier run of the same set left it."""
        source = Path(train_classifier.__code__.co_filename).read_bytes()
        name = hashlib.sha256(identity.encode() + source).hexdigest()[:16]
        path = self.out / f"classifier-{name}.safetensors"
        if not path.is_file():
            every = [*self.training.attributes, *self.held_back.attributes]
            labels = {key: sorted({each[key] for each in every}) for key in CLASSIFIED}
            steps = self.options.classifier_steps
            log.info("training the classifier of %s: %d steps", " and ".join(CLASSIFIED), steps)
            training = self.training
            trained = train_classifier(training.images, training.attributes, labels, steps=steps)
            own = path.with_name(f"{path.stem}-{uuid.uuid4().hex}.partial")
            trained.save(own)
            with contextlib.suppress(FileExistsError):  # another shard was first: all judge alike
                os.link(own, path)
            own.unlink()
        return AttributeClassifier.load(path)

    def instrument(self) -> dict[str, Any]:
        """Return how often the instrument is right: on true held-back renders, and decoded ones.

        Keys `true` and `round_trip` hold `{attribute: share}`, `nearest` the median distance of a
        held-back render to its nearest training render: what a result that is no copy may have.
        """
        nearest = nearest_images(self.held_back.images, self.training.images)
        return {
            "num_training": len(self.training.uids),
            "num_held_back": len(self.held_back.uids),
            "true": self._accuracy(self.held_back.images),
            "round_trip": self._accuracy(self.held_back.decoded),
            "nearest": float(np.median([each.distance for each in nearest])),
        }

    def _accuracy(self, images: Float[Tensor, "n v 6 h w"]) -> dict[str, float]:
        right = [
            _right(self.measure(each, true), true)
            for each, true in zip(images, self.held_back.attributes, strict=True)
        ]
        return dict(zip(MEASURED, np.mean(right, axis=0).tolist(), strict=True))

    def measure(self, images: Float[Tensor, "v 6 h w"], asked: Mapping[str, str]) -> dict[str, str]:
        """Return the category, pattern and colour that images show."""
        rgb = images[:, :3].permute(0, 2, 3, 1).double().numpy() / 2.0 + 0.5
        hit = images[:, 3:].norm(dim=1).numpy() > 0.5
        [named] = self.classifier.name(images[None])
        colour = dominant_colour(rgb, hit, self.palette, asked.get("pattern_colour", ""))
        return named | {"colour": colour}

    def _excess(self, i: int, made: ViewImages) -> dict[str, float]:
        """Return the excess of the incoherence of images over that of the caption's true render."""
        sample = self._true_sample(i)
        true = view_images(sample["images"].numpy(), sample["hit"].numpy(), made.cameras)
        found = excess(coherence(made), coherence(true))
        return {f"excess_{key}": value for key, value in found.items()}

    def cases(self, count: int | None) -> list[Case]:
        """Return a case for each held-back caption; with a count, for so many spread over them."""
        return [self._case(i) for i in spread(len(self.held_back.uids), count)]

    def _case(self, i: int) -> Case:
        path = self.out / "generated" / f"{self.held_back.uids[i]}.glb"
        identity = f"{self.identity} {self.held_back.captions[i]} {asdict(self.options)}"
        return Case(self.held_back.uids[i], identity, lambda: (i, path), [path])

    def score(self, case: Case, options: TextOptions, out: Path, picture: str) -> dict[str, Any]:
        """Make a result and return its pair."""
        i, path = case.load()
        asked = self.held_back.attributes[i]
        pair: dict[str, Any] = {
            "name": case.name, "prompt": self.held_back.captions[i], "failed": None,
            "truth": "prompt",
            "truth_digest": hashlib.sha256(self.held_back.captions[i].encode()).hexdigest()[:16],
            "metrics": {}, "floor": {}, "picture": None, "mesh": None,
            "asked": {key: asked[key] for key in MEASURED},
        }  # fmt: skip
        metrics = pair["metrics"]
        seed, caption = options.seed + i, self.held_back.captions[i]
        extras = {
            "prompt": caption, "seed": seed, "steps": options.steps, "guidance": options.guidance,
        }  # fmt: skip
        with measured(metrics, "generate"):
            [images] = self.generate([caption], [seed], options.steps, options.guidance).cpu()
        cameras = view_layout(LAYOUT)
        shown_there = made_images(images.numpy(), cameras)
        metrics |= self._excess(i, shown_there)
        drawn = classifier_input(images)
        in_images = _right(self.measure(drawn, asked), asked)
        metrics |= {f"image_{key}_right": x for key, x in zip(MEASURED, in_images, strict=True)}
        rows = [self.held_back.images[i], drawn]
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with measured(metrics, "reconstruct"):
                mesh = self.reconstruct(
                    images, cameras, grid=options.grid, texture_px=options.texture_px
                )
                save_mesh(mesh, path, extras={"relief": extras})
        except UserError as error:  # the images are there all the same
            metrics |= dict.fromkeys(RIGHT, 0.0)
            metrics["input_view_normal_deg"] = FAILURE_FIGURES["input_view_normal_deg"]
            pair |= {"failed": str(error)}
        else:
            made = load_mesh(path)
            metrics["input_view_normal_deg"] = mesh_normal_deg(
                render_mesh(made, cameras, images.shape[-1]), shown_there.normal, shown_there.hit
            )
            views = views_input(render_mesh(made, cameras, SIDE_PX))
            shown = self.measure(views, asked)
            [nearest] = nearest_images(views[None], self.training.images)
            right = _right(shown, asked)
            metrics |= dict(zip(RIGHT, [*right, float(np.mean(right)), min(right)], strict=True))
            metrics |= {"nearest_distance": nearest.distance}
            rows += [views, self.training.images[nearest.index]]
            pair |= {"measured": shown, "nearest": self.training.uids[nearest.index]}
            pair |= {"mesh": str(path)}
        write_bytes(out / picture, to_png(picture_of(rows)))
        return pair | {"picture": picture}


def confusions(pairs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, int]]]:
    """Return a confusion matrix of every attribute over the pairs; a failed one shows `failed`."""
    return {
        key: confusion(
            [
                (pair["asked"][key], "failed" if pair["failed"] else pair["measured"][key])
                for pair in pairs
            ]
        )
        for key in MEASURED
    }


def told_instrument(instrument: Mapping[str, Any]) -> str:
    """Return what `TextBenchmark.instrument` found, as a sentence."""

    def shares(kind: str) -> str:
        return ", ".join(f"{key} {value:.2f}" for key, value in instrument[kind].items())

    return (
        f"The instrument itself is right on {shares('true')} of the {instrument['num_held_back']} "
        f"held-back renders, and on {shares('round_trip')} of them after the autoencoder; they are "
        f"{instrument['nearest']:.3f} from their nearest training render (median)."
    )


def picture_of(rows: Sequence[Float[Tensor, "v 6 h w"]]) -> UInt8[ndarray, "h2 w2 3"]:
    """Return the rgb of each row's views, one row below the other."""
    strips = [torch.cat(list(views[:, :3]), dim=-1) for views in rows]
    pixels = torch.cat(strips, dim=-2).clamp(-1.0, 1.0).permute(1, 2, 0)
    return np.ascontiguousarray(np.rint((pixels.numpy() + 1.0) * 127.5).astype(np.uint8))
