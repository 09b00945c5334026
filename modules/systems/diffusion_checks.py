"""Whether latent cache, denoiser and conditioners fit each other, told before training starts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from data_pipeline.contract import UserError
from modules.latents.spec import LatentSpec
from modules.networks.denoiser import JointDenoiser
from modules.networks.text_backbones import PretrainedText
from modules.networks.text_cache import CachedText
from modules.networks.text_encoder import TextEncoder, Vocabulary
from modules.networks.weights_fingerprint import is_same_model


def check_latents(denoiser: JointDenoiser, spec: LatentSpec, latents: Path) -> None:
    """Raise UserError unless the denoiser takes the latents; warn of statistics new to it."""
    views = denoiser.num_views
    if denoiser.channels != spec.channels or views != spec.num_views:
        raise UserError(
            f"{latents} holds {spec.num_views} views of {spec.channels} channels, the denoiser "
            f"takes {views} of {denoiser.channels}: set denoiser.num_views and "
            "denoiser.in_channels, or encode with another packing or autoencoder"
        )
    if denoiser.backbone.origin and not spec.is_carried:
        rank_zero_warn(
            f"{latents} is normalised by its own statistics, but the backbone was trained on "
            "latents normalised by the autoencoder's: encode with statistics=autoencoder"
        )


def check_text(
    denoiser: JointDenoiser,
    text_encoder: TextEncoder | PretrainedText | CachedText,
    vocabulary: Vocabulary,
    latents: Path,
) -> None:
    """Raise UserError unless the denoiser takes the embeddings, and the encoder the words."""
    if isinstance(text_encoder, TextEncoder):
        num_words = text_encoder.config["max_words"]
        if len(vocabulary) > num_words:
            raise UserError(
                f"{latents} has {len(vocabulary)} words, the text encoder {num_words}: raise "
                "conditioner.max_words"
            )
        text_encoder.vocabulary = vocabulary
    text, pooled = text_encoder.embed([""])
    backbone, width = denoiser.backbone, None if pooled is None else pooled.shape[1]
    if (text.shape[2], width) != (backbone.text_width, backbone.pooled_width):
        raise UserError(
            f"the conditioner embeds text with {text.shape[2]} numbers a token and {width} of the "
            f"whole, the denoiser takes {backbone.text_width} and {backbone.pooled_width}: choose "
            "the conditioner of that backbone (conf/conditioner)"
        )


def check_vision(
    denoiser: JointDenoiser, told: Mapping[str, Any] | None, image_share: float, latents: Path
) -> None:
    """Raise UserError unless the cache holds the vision tokens that the denoiser takes, if any.

    Args:
        denoiser: to train.
        told: what the cache says of its vision tokens (`VisionEncoder.about`); None without any.
        image_share: of samples that see references.
        latents: the cache.
    """
    if denoiser.vision is None:
        return
    if image_share == 0.0:
        raise UserError(
            "vision tokens are of reference images, and training shows none: set "
            "system.image_share=0.9, or denoiser.vision_width=null"
        )
    if told is None:
        raise UserError(
            f"{latents} holds no vision tokens: encode with vision=siglip (or dinov2, clip), or "
            "set denoiser.vision_width=null"
        )
    if told["width"] != (width := denoiser.vision.in_features):
        raise UserError(
            f"{latents} holds vision tokens of {told['width']} numbers, the denoiser takes "
            f"{width}: set denoiser.vision_width={told['width']}"
        )


def is_same_vision(saved: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> bool:
    """Return whether a cache's vision tokens are those of a checkpoint; True if that names none.

    Args:
        saved: what the checkpoint says of its tokens (`VisionEncoder.about`).
        now: what the cache says of its own.
    """
    if saved is None or now is None:
        return saved is None
    return is_same_model(saved["encoder"], now["encoder"]) and all(
        saved[key] == now[key] for key in ("width", "num_tokens")
    )


def check_settings(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise UserError if a checkpoint was trained with other settings.

    Args:
        saved: by their key; what an older checkpoint does not hold is not compared.
        now: the settings of this run.
    """
    for key, value in now.items():
        if saved.get(key, value) != value:
            raise UserError(
                f"the checkpoint was trained with {key}={saved[key]}, this run has {value}: give "
                "the checkpoint's, or start a new run (another paths.run_dir)"
            )
