"""An exported denoiser: FLUX.2's own folder, beside it what the joint denoiser adds."""

import json
from pathlib import Path
from typing import Any

from diffusers import Flux2Transformer2DModel
from safetensors.torch import load_file, save_file

from data_pipeline.contract import CONVENTIONS_VERSION, UserError, check_conventions
from modules.networks.denoiser import JointDenoiser
from modules.networks.text_encoder import TextEncoder, Vocabulary

CONFIG_NAME = "denoiser.json"
EMBEDDINGS = ("modality_embedding", "view_embedding")


def save_denoiser(
    directory: Path,
    denoiser: JointDenoiser,
    text_encoder: TextEncoder,
    vocabulary: Vocabulary,
    sampling: dict[str, Any],
    trained_on: str | None = None,
) -> None:
    """Write a denoiser and its text encoder into an existing folder.

    Args:
        directory: gets `transformer/` (as diffusers writes it), `embeddings.safetensors`,
            `text_encoder.safetensors`, `vocabulary.json` and `denoiser.json`.
        denoiser: to write.
        text_encoder: to write.
        vocabulary: of the text encoder.
        sampling: what a sampler must know: `prediction` and `shift`.
        trained_on: SHA-256 of the manifest of the rendered samples; None where it is not known.
    """
    denoiser.transformer.save_pretrained(directory / "transformer", safe_serialization=True)
    embeddings = {name: getattr(denoiser, name).detach().contiguous() for name in EMBEDDINGS}
    save_file(embeddings, directory / "embeddings.safetensors")
    weights = {name: tensor.contiguous() for name, tensor in text_encoder.state_dict().items()}
    save_file(weights, directory / "text_encoder.safetensors")
    vocabulary.save(directory / "vocabulary.json")
    content = {
        "conventions": CONVENTIONS_VERSION,
        "sampling": sampling,
        "trained_on": trained_on,
        "text_encoder": text_encoder.config,
    }
    (directory / CONFIG_NAME).write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def trained_on(directory: Path) -> str | None:
    """Return the SHA-256 of the manifest of the samples that an exported denoiser was trained on.

    None for exports that do not say, or that cannot be read, which `load_denoiser` tells.
    """
    try:
        return json.loads((directory / CONFIG_NAME).read_text("utf-8")).get("trained_on")
    except (OSError, ValueError, AttributeError):
        return None


def load_denoiser(
    directory: Path,
) -> tuple[JointDenoiser, TextEncoder, Vocabulary, dict[str, Any]]:
    """Read what `save_denoiser` wrote: networks ready for inference, vocabulary, sampling.

    Raises:
        UserError: the folder is no exported denoiser, is damaged, or follows other conventions.
    """
    try:
        content = json.loads((directory / CONFIG_NAME).read_text("utf-8"))
        check_conventions(content["conventions"], str(directory))
        transformer = Flux2Transformer2DModel.from_pretrained(
            directory / "transformer",
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
        )
        embeddings = load_file(directory / "embeddings.safetensors")
        weights = load_file(directory / "text_encoder.safetensors")
        vocabulary = Vocabulary.load(directory / "vocabulary.json")
        text_encoder = TextEncoder(**content["text_encoder"])
        text_encoder.load_state_dict(weights)
        denoiser = JointDenoiser(transformer, num_views=len(embeddings["view_embedding"]))
        denoiser.load_state_dict(embeddings, strict=False)
        sampling = content["sampling"]
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise UserError(
            f"{directory} holds no complete denoiser ({type(error).__name__}): export it again "
            "with train.py experiment=tiny/latent_diffusion"
        ) from error
    for network in (denoiser, text_encoder):
        network.eval().requires_grad_(False)
    return denoiser, text_encoder, vocabulary, sampling
