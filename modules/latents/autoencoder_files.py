"""Image autoencoders from a folder, a file or the hub: any of diffusers', and TAEF2."""

import importlib
import json
from pathlib import Path
from typing import Any

from diffusers import ModelMixin
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file

from data_pipeline.contract import UserError
from modules.latents.taef2 import TAEF2

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"

TAEF2_WEIGHTS = "taef2.safetensors"
"""As the hub has it: both halves, numbered as in diffusers' `AutoencoderTiny`."""

TAEF2_HALVES = ("taef2_encoder.safetensors", "taef2_decoder.safetensors")
"""As its author's own code has it: numbered by the parts of a sequence, whose first one in the
decoder has no weights."""


def load_autoencoder(source: str | Path) -> ModelMixin:
    """Load a frozen autoencoder in float32: `AutoencoderDC`, `AutoencoderKLFlux2`, `TAEF2`, ...

    Args:
        source: a folder that `save_pretrained` wrote (or the pipeline's, with its `vae` inside), a
            folder or file of TAEF2's published weights, or OWNER/NAME[/FOLDER] on the hub. What
            exists here is taken before the hub is asked.

    Raises:
        UserError: there is no autoencoder, or it cannot be read.
    """
    path = Path(source)
    if not path.exists():
        path = _download(str(source))
    try:
        if path.is_file():
            autoencoder: Any = _load_taef2(path)
        elif (path / TAEF2_WEIGHTS).is_file() and not (path / CONFIG).is_file():
            autoencoder = _load_taef2(path / TAEF2_WEIGHTS)
        elif all((path / name).is_file() for name in TAEF2_HALVES):
            autoencoder = _load_taef2_halves(path)
        else:
            autoencoder = _load_folder(path if (path / CONFIG).is_file() else path / "vae", source)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{source}: the weights cannot be read ({type(error).__name__}): export or download "
            "them again"
        ) from error
    return autoencoder.eval().requires_grad_(False)


def _load_folder(folder: Path, source: str | Path) -> ModelMixin:
    """Load what `save_pretrained` wrote, of the class that it names."""
    try:
        class_name = json.loads((folder / CONFIG).read_text("utf-8"))["_class_name"]
        known = TAEF2 if class_name == TAEF2.__name__ else None
        autoencoder_class: Any = known or getattr(importlib.import_module("diffusers"), class_name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{source} holds no autoencoder of diffusers ({type(error).__name__}): give the "
            "folder `autoencoder` of a pipeline, as train.py experiment=tiny/autoencoder exports it"
        ) from error
    if not (hasattr(autoencoder_class, "encode") and hasattr(autoencoder_class, "decode")):
        raise UserError(
            f"{source} holds a {class_name}, which has no encoder and decoder of images: give the "
            "folder of an image autoencoder, such as `vae` of a pipeline of diffusers"
        )
    autoencoder, found = autoencoder_class.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        low_cpu_mem_usage=False,
        output_loading_info=True,
    )
    if found["missing_keys"]:  # diffusers only warns, and draws them at random
        raise ValueError(f"no weights for {sorted(found['missing_keys'])[0]}")
    return autoencoder


def _load_taef2(path: Path) -> TAEF2:
    return TAEF2.from_weights(load_file(path))


def _load_taef2_halves(folder: Path) -> TAEF2:
    encoder, decoder = (load_file(folder / name) for name in TAEF2_HALVES)
    weights = {f"encoder.layers.{name}": tensor for name, tensor in encoder.items()}
    for name, tensor in decoder.items():
        number, rest = name.split(".", 1)
        weights[f"decoder.layers.{int(number) - 1}.{rest}"] = tensor
    return TAEF2.from_weights(weights)


def _download(source: str) -> Path:
    """Return the local copy of a folder of the hub, or of TAEF2's one file."""
    owner, _, rest = source.partition("/")
    name, _, subfolder = rest.partition("/")
    missing = f"autoencoder={source} is neither a folder or file here nor on the hub"
    if not owner or not name:
        raise UserError(f"{missing}: give a path, or OWNER/NAME as in madebyollin/taef2")

    def get(filename: str) -> Path:
        return Path(hf_hub_download(f"{owner}/{name}", filename, subfolder=subfolder or None))

    try:
        try:
            config = get(CONFIG)
        except LocalEntryNotFoundError:  # an EntryNotFoundError, too: the hub cannot be reached
            raise
        except EntryNotFoundError:
            return get(TAEF2_WEIGHTS)
        get(WEIGHTS)
        return config.parent
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"autoencoder={source} is neither a folder or file here nor in the hub's cache, and "
            "the hub cannot be reached: give a path, or go online once"
        ) from error
    except EntryNotFoundError as error:
        raise UserError(
            f"{owner}/{name} on the hub holds no autoencoder at its top: name the folder that "
            f"does, as in {owner}/{name}/vae"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"{missing} ({type(error).__name__}): check its name, and the net"
        ) from error
