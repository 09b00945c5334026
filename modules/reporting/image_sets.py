"""Images against their prompts, and a set of images against another."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from numpy import ndarray

from data_pipeline.contract import UserError
from modules.metrics.features import (
    ClipNetwork,
    Dinov2Network,
    FeatureNetwork,
    InceptionNetwork,
    fit_image,
)
from modules.metrics.scoring import check_seed
from modules.metrics.sets import ClipScore, Cmmd, FrechetDistance, KernelDistance, RPrecision
from modules.reporting.evaluation import PICTURE_PX, PICTURE_VIEWS, Case
from modules.reporting.folder_cases import asset_digest
from modules.reporting.image_folder import ImageFolder, ViewOptions, file_name
from modules.reporting.page import write_bytes
from modules.reporting.pictures import side_by_side, to_png
from modules.reporting.rebuild_cases import file_or_folder_digest

NETWORKS = {"clip": ClipNetwork, "dinov2": Dinov2Network, "inception": InceptionNetwork}

SET_FIGURES = {"inception": ("fid", "kid"), "clip": ("cmmd",), "dinov2": ("fd_dinov2",)}
"""Which figures of two sets each network serves."""

BATCH = 32


@dataclass(frozen=True, kw_only=True)
class ImageSetOptions(ViewOptions):
    """How figures of images are taken.

    Args:
        clip, dinov2, inception: networks by hub id or path; None leaves their figures out.
        kid_subset_size: images in a subset; None leaves KID out.
        seed: of the subsets.
    """

    clip: str | None = None
    dinov2: str | None = None
    inception: str | None = None
    kid_subset_size: int | None = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)

    def networks(self, device: torch.device) -> dict[str, Any]:
        """Return the networks that were named, by key."""
        named = {key: getattr(self, key) for key in NETWORKS}
        return {key: NETWORKS[key](name, device) for key, name in named.items() if name is not None}


class PromptScorer:
    """Scores images by CLIP against their prompt, among all prompts.

    Args:
        prompts: the prompt of every name; empty where the list holds none.
        clip: embeds images and texts.
    """

    def __init__(self, prompts: Mapping[str, str], clip: ClipNetwork) -> None:
        self.texts = sorted({text for text in prompts.values() if text})
        self.digest = hashlib.sha256(repr(self.texts).encode()).hexdigest()
        self.cut = [text for text in self.texts if clip.is_cut(text)]
        self._embeddings = clip.text_features(self.texts)
        self._clip = clip

    def figures(self, images: Sequence[UInt8[ndarray, "_ _ 3"]], text: str) -> dict[str, float]:
        """Return `clip_score` and `r_precision`, means over the images."""
        features = self._clip.features(images)
        own = torch.full((len(images),), self.texts.index(text))
        score, precision = ClipScore(), RPrecision(self._embeddings)
        score.update(features, self._embeddings[own])
        precision.update(features, own)
        return {"clip_score": float(score.compute()), "r_precision": float(precision.compute())}


FAILED = {"clip_score": 0.0, "r_precision": 0.0}
"""What a mesh without prompt, a prompt without mesh, and a broken mesh count as."""


def name_prompts(rows: Iterable[tuple[str, str | None]], folder: ImageFolder) -> dict[str, str]:
    """Return the prompts by name of file.

    Args:
        rows: file and caption.
        folder: the images.

    Raises:
        UserError: a name has two rows, no row names a file in the folder, or none has a caption.
    """
    prompts: dict[str, str] = {}
    for file, caption in rows:
        name = file_name(file)
        if name in prompts:
            raise UserError(f"prompts has two rows for {name}: give each file one")
        prompts[name] = caption or ""
    if not prompts.keys() & folder.files.keys():
        raise UserError(
            f"no row of prompts names a file in the folder (first are {min(prompts, default='-')} "
            f"and {min(folder.files)}): they are matched by name without folder and suffix"
        )
    if not any(prompts.values()):
        raise UserError("no row of prompts has a caption: name the column caption")
    return prompts


def image_cases(
    folder: ImageFolder, prompts: Mapping[str, str] | None, options: ImageSetOptions
) -> list[Case]:
    """Return a case for every name in the folder or among the prompts.

    Args:
        folder: the images.
        prompts: by name; None when images are not held against prompts.
        options: name the network.
    """
    texts = prompts or {}
    weights = options.clip and file_or_folder_digest(options.clip)
    every = hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()

    def case(name: str) -> Case:
        def load() -> list[UInt8[ndarray, "_ _ 3"]]:
            if name not in folder.files:
                raise UserError("there is no file of this name for the prompt")
            if prompts is not None and not texts.get(name):
                raise UserError("there is no prompt for this file")
            return folder.images(name)

        digest = asset_digest(folder.files[name]) if name in folder.files else "no file"
        return Case(name, f"{digest} {every} {weights}", load)

    return [case(name) for name in sorted(folder.files.keys() | texts.keys())]


class ImageCaseScorer:
    """Turns a case of `image_cases` into a pair of the report.

    Args:
        folder: the images.
        prompts: by name; None when images are not held against prompts.
        scorer: None likewise.
    """

    def __init__(
        self, folder: ImageFolder, prompts: Mapping[str, str] | None, scorer: PromptScorer | None
    ) -> None:
        self._folder = folder
        self._prompts = prompts or {}
        self._scorer = scorer

    def __call__(self, case: Case, options: Any, out: Path, picture: str) -> dict[str, Any]:
        """Return the pair; a failed one carries what it counts as."""
        del options
        text = self._prompts.get(case.name, "")
        pair = {"name": case.name, "failed": None, "truth": "prompt" if text else None}
        digest = hashlib.sha256(text.encode()).hexdigest()[:16] if text else None
        pair |= {
            "truth_digest": digest,
            "prompt": text,
            "metrics": {},
            "floor": {},
            "picture": None,
            "mesh": None,
        }
        try:
            images = case.load()
        except UserError as error:
            return pair | {"failed": str(error), "metrics": FAILED if self._scorer else {}}
        shown = [fit_image(image, PICTURE_PX, crop=True) for image in images[:PICTURE_VIEWS]]
        write_bytes(out / picture, to_png(side_by_side(shown)))
        metrics = self._scorer.figures(images, text) if self._scorer else {}
        mesh = str(self._folder.files[case.name]) if self._folder.has_meshes else None
        return pair | {"metrics": metrics, "picture": picture, "mesh": mesh}


def check_set_sizes(folder: ImageFolder, reference: ImageFolder, options: ImageSetOptions) -> None:
    """Raise UserError where a set is too small for the figures that were asked for."""
    fewest, size = min(folder.num_images, reference.num_images), options.kid_subset_size
    if options.inception is not None and size is not None and fewest < size:
        raise UserError(
            f"KID by subsets of {size} needs as many images in each set, and one has {fewest}: "
            f"give kid_subset_size={max(fewest // 2, 2)}, or null to leave KID out"
        )
    if fewest < 2:
        raise UserError("a set of one image has no spread: give folders of two images or more")


def compare_sets(
    folder: ImageFolder,
    reference: ImageFolder,
    networks: Mapping[str, FeatureNetwork],
    options: ImageSetOptions,
) -> tuple[dict[str, Any], list[str]]:
    """Return the figures of a set against a reference set, and what to know about them.

    Args:
        folder: the set that is judged.
        reference: the other.
        networks: by key of `SET_FIGURES`.
        options: how figures are taken.

    Returns:
        `num_images`, `num_reference_images` and `figures` by key; sentences.
    """
    metrics = {key: _metrics(key, network, options) for key, network in networks.items()}
    counts, notes = [], []
    for images, real, role in ((folder, False, "set"), (reference, True, "reference set")):
        count, failed = 0, []
        for batch in images.batches(BATCH, failed):
            count += len(batch)
            for key, network in networks.items():
                features = network.features(batch)
                for metric in metrics[key].values():
                    metric.update(features, real=real)
        counts.append(count)
        if failed:
            notes.append(f"{len(failed)} files are not in the {role}, such as {failed[0]}.")
    figures: dict[str, float] = {}
    for key, by_name in metrics.items():
        for name, metric in by_name.items():
            value = metric.compute()
            if isinstance(value, tuple):
                value, figures[f"{name}_std"] = value[0], float(value[1])
            figures[name] = float(value)
        notes += _warnings(key, networks[key], by_name, min(counts))
    if folder.has_meshes or reference.has_meshes:
        notes.append(
            "The views of one mesh count as images of their own, which they are not quite."
        )
    unnamed = {key: names for key, names in SET_FIGURES.items() if key not in networks}
    if absent := [name for names in unnamed.values() for name in names]:
        notes.append(f"Left out, as their network was not named: {', '.join(absent)}.")
    if "inception" in networks and options.kid_subset_size is None:
        notes.append("kid is left out, as kid_subset_size=null.")
    return {"num_images": counts[0], "num_reference_images": counts[1], "figures": figures}, notes


def _metrics(key: str, network: FeatureNetwork, options: ImageSetOptions) -> dict[str, Any]:
    width = network.num_features
    if key == "clip":
        return {"cmmd": Cmmd(width)}
    if key == "dinov2":
        return {"fd_dinov2": FrechetDistance(width)}
    metrics: dict[str, Any] = {"fid": FrechetDistance(width)}
    if options.kid_subset_size is not None:
        size = options.kid_subset_size
        metrics["kid"] = KernelDistance(width, subset_size=size, seed=options.seed)
    return metrics


def _warnings(
    key: str, network: FeatureNetwork, metrics: Mapping[str, Any], fewest: int
) -> list[str]:
    """Return what keeps a network's figures from being comparable."""
    warnings = []
    for name, metric in metrics.items():
        if isinstance(metric, FrechetDistance) and fewest <= network.num_features:
            warnings.append(
                f"{name}: {fewest} images for {network.num_features} features: the covariances "
                "lack rank, and the figure is too large. Compare with equal counts only."
            )
    if isinstance(network, ClipNetwork) and (network.num_features, network.side_px) != (768, 336):
        warnings.append("cmmd: published ones are of CLIP ViT-L/14 at 336 px, and this is not.")
    if key == "dinov2" and network.num_features != 1024:
        warnings.append("fd_dinov2: published ones are of DINOv2 ViT-L/14, and this is not.")
    return warnings
