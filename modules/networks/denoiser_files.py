"""An exported denoiser: its backbone or what was trained of it, embeddings, text encoder."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from data_pipeline.contract import CONVENTIONS_VERSION, UserError, check_conventions
from modules.networks.adapter_files import LORA_NAME, load_experts, save_experts, save_shared_lora
from modules.networks.backbone import Backbone
from modules.networks.denoiser import JointDenoiser
from modules.networks.flux1 import Flux1Backbone
from modules.networks.flux2 import Flux2Backbone
from modules.networks.sd3 import Sd3Backbone
from modules.networks.text_backbones import PretrainedText, load_text
from modules.networks.text_cache import CachedText
from modules.networks.text_encoder import TextEncoder, Vocabulary
from modules.networks.vision_encoder import VisionEncoder

CONFIG_NAME = "denoiser.json"
BACKBONES: dict[str, type[Backbone]] = {
    each.__name__: each for each in (Flux1Backbone, Flux2Backbone, Sd3Backbone)
}


def save_network(directory: Path, denoiser: JointDenoiser) -> dict[str, Any]:
    """Write a denoiser's weights into an existing folder and return what `load_network` is told.

    A backbone that was trained as a whole is written to `transformer/`, as diffusers does. Of an
    adapted one only the experts are, to `experts.safetensors`, and the shared one once more in
    PEFT's form, to `shared_lora/`. What else is trained, embeddings and the layer of vision tokens,
    goes to `embeddings.safetensors`.
    """
    backbone = denoiser.backbone
    if backbone.adapters is None:
        backbone.transformer.save_pretrained(directory / "transformer", safe_serialization=True)
    else:
        save_experts(backbone, directory / "experts.safetensors")
        if backbone.adapters.shared_rank:
            (directory / "shared_lora").mkdir(exist_ok=True)
            save_shared_lora(backbone, directory / "shared_lora" / LORA_NAME)
    if embeddings := {name: p.detach().contiguous() for name, p in _own(denoiser).items()}:
        save_file(embeddings, directory / "embeddings.safetensors")
    return {
        "backbone": type(backbone).__name__,
        "origin": backbone.origin,
        "num_views": denoiser.num_views,
        "layout": denoiser.layout,
        "text_timestep": denoiser.text_timestep,
        "vision_width": None if denoiser.vision is None else denoiser.vision.in_features,
    }


@contextmanager
def _named(directory: Path, part: str) -> Iterator[None]:
    """Tell where an export names the pretrained model that cannot be loaded."""
    try:
        yield
    except UserError as error:
        raise UserError(
            f"{error}; this export finds it by {part}.source in {directory / CONFIG_NAME}: "
            "change that where the model was moved"
        ) from error


def _own(denoiser: JointDenoiser) -> dict[str, nn.Parameter]:
    """Return the parameters that are none of the backbone's."""
    return {n: p for n, p in denoiser.named_parameters() if not n.startswith("backbone.")}


def load_network(directory: Path, told: dict[str, Any]) -> JointDenoiser:
    """Read what `save_network` wrote; of an adapted backbone its pretrained weights too.

    Args:
        directory: that was written.
        told: what `save_network` returned. Exports from before backbones could be chosen say
            nothing: theirs is FLUX.2's class, and text takes the largest noise level.

    Raises:
        UserError: the pretrained backbone cannot be found or has other weights now, or the experts
            do not fit it.
    """
    backbone_class = BACKBONES[told.get("backbone", Flux2Backbone.__name__)]
    origin, stored = told.get("origin", {}), directory / "embeddings.safetensors"
    embeddings = load_file(stored) if stored.is_file() else {}
    experts = directory / "experts.safetensors"
    if experts.is_file():
        with _named(directory, "network.origin"):
            backbone = backbone_class.from_pretrained(**origin)
        load_experts(backbone, experts)
    else:
        own = {"source": str(directory / "transformer"), "fingerprint": None}
        whole = {"dtype": "float32", **origin, **own}
        backbone = backbone_class.from_pretrained(**whole)
    num_views = told["num_views"] if "num_views" in told else len(embeddings["view_embedding"])
    chosen = {key: told[key] for key in ("layout", "text_timestep", "vision_width") if key in told}
    denoiser = JointDenoiser(backbone, num_views, **chosen)
    if differing := _own(denoiser).keys() ^ embeddings.keys():
        raise KeyError(f"{stored}: {', '.join(sorted(differing))}")
    denoiser.load_state_dict(embeddings, strict=False)
    return denoiser


def save_denoiser(
    directory: Path,
    denoiser: JointDenoiser,
    text_encoder: TextEncoder | PretrainedText | CachedText,
    sampling: dict[str, Any],
    trained_on: str | None = None,
    vision: dict[str, Any] | None = None,
) -> None:
    """Write a denoiser and its text encoder into an existing folder.

    Args:
        directory: gets what `save_network` writes, `denoiser.json`, and of a text encoder that was
            trained `text_encoder.safetensors` and `vocabulary.json`. Of a pretrained one only its
            name is written.
        denoiser: to write.
        text_encoder: to write.
        sampling: what a sampler must know: `prediction`, `shift`, `num_references` and `textures`.
        trained_on: SHA-256 of the manifest of the rendered samples; None where it is not known.
        vision: configuration of the `VisionEncoder` whose tokens the denoiser takes, if any.
    """
    if isinstance(text_encoder, TextEncoder):
        assert text_encoder.vocabulary is not None
        weights = {name: tensor.contiguous() for name, tensor in text_encoder.state_dict().items()}
        save_file(weights, directory / "text_encoder.safetensors")
        text_encoder.vocabulary.save(directory / "vocabulary.json")
    content = {
        "conventions": CONVENTIONS_VERSION,
        "network": save_network(directory, denoiser),
        "sampling": sampling,
        "trained_on": trained_on,
        "text_encoder": text_encoder.config,
        "vision_encoder": vision,
    }
    (directory / CONFIG_NAME).write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def trained_on(directory: Path) -> str | None:
    """Return the SHA-256 of the manifest of the samples that an exported denoiser was trained on.

    None for exports that do not say, or that cannot be read, which `load_denoiser` tells.
    """
    return _read(directory).get("trained_on")


def fingerprints(directory: Path) -> dict[str, str]:
    """Return those of the pretrained parts that an exported denoiser names, by part."""
    content = _read(directory)
    origin = content.get("network", {}).get("origin")
    parts = {"backbone": origin} | {k: content.get(k) for k in ("text_encoder", "vision_encoder")}
    found = {part: (named or {}).get("fingerprint") for part, named in parts.items()}
    return {part: weights for part, weights in found.items() if weights is not None}


def _read(directory: Path) -> dict[str, Any]:
    """Return what an export says of itself; nothing where it cannot be read."""
    try:
        content = json.loads((directory / CONFIG_NAME).read_text("utf-8"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}


def load_denoiser(
    directory: Path,
) -> tuple[JointDenoiser, TextEncoder | PretrainedText, VisionEncoder | None, dict[str, Any]]:
    """Read what `save_denoiser` wrote: networks ready for inference, and how to sample.

    Raises:
        UserError: the folder is no exported denoiser, is damaged, or follows other conventions.
    """
    try:
        content = json.loads((directory / CONFIG_NAME).read_text("utf-8"))
        check_conventions(content["conventions"], str(directory))
        text_encoder = _load_text_encoder(directory, content["text_encoder"])
        denoiser = load_network(directory, content.get("network", {}))
        vision = content.get("vision_encoder")
        with _named(directory, "vision_encoder"):
            vision_encoder = None if vision is None else VisionEncoder(**vision)
        sampling = content["sampling"]
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise UserError(
            f"{directory} holds no complete denoiser ({type(error).__name__}): export it again "
            "with train.py experiment=tiny/latent_diffusion"
        ) from error
    for network in (denoiser, text_encoder):
        network.eval().requires_grad_(False)
    return denoiser, text_encoder, vision_encoder, sampling


def _load_text_encoder(directory: Path, config: dict[str, Any]) -> TextEncoder | PretrainedText:
    if "kind" in config:
        with _named(directory, "text_encoder"):
            return load_text(config)
    text_encoder = TextEncoder(**config)
    text_encoder.load_state_dict(load_file(directory / "text_encoder.safetensors"))
    text_encoder.vocabulary = Vocabulary.load(directory / "vocabulary.json")
    return text_encoder
