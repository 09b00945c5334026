"""Trained experts in safetensors; the shared one also as the LoRA file that diffusers loads."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from data_pipeline.contract import UserError
from modules.networks.adapters import MixtureOfLoRA
from modules.networks.backbone import Backbone

LORA_NAME = "pytorch_lora_weights.safetensors"
"""The name under which diffusers looks for a LoRA in a folder."""


def save_experts(backbone: Backbone, path: Path) -> None:
    """Write all experts of an adapted backbone, and in the file's metadata how it was adapted."""
    assert backbone.adapters is not None
    tensors = {name: p.detach().contiguous() for name, p in _experts(backbone).items()}
    save_file(tensors, path, {"format": "pt", "adapters": json.dumps(asdict(backbone.adapters))})


def load_experts(backbone: Backbone, path: Path) -> None:
    """Read what `save_experts` wrote; a backbone that is not adapted yet becomes so.

    Raises:
        UserError: the file is damaged, or belongs to a backbone or adapters of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            spec = MixtureOfLoRA(**json.loads((file.metadata() or {})["adapters"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} holds no experts ({type(error).__name__}: {error}): give an "
            "experts.safetensors that training exported"
        ) from error
    installed = backbone.adapters or spec
    if backbone.adapters is None:
        backbone.adapt(spec)
    parameters = _experts(backbone)
    expected = {name: tuple(p.shape) for name, p in parameters.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    differing = sorted(n for n in expected | found if expected.get(n) != found.get(n))
    if differing or installed.scale != spec.scale:
        raise UserError(
            f"{path} was trained with {spec}, on another backbone or with other adapters than "
            f"{installed} here; they differ in {', '.join(differing[:3]) or 'scale'}"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def save_shared_lora(backbone: Backbone, path: Path) -> None:
    """Write the shared expert in PEFT's form: diffusers' `pipeline.load_lora_weights` takes it.

    Such a file knows no scale, so it is folded into the second matrix.
    """
    tensors = {}
    for name, layer in backbone.adapted.items():
        tensors[f"transformer.{name}.lora_A.weight"] = layer.shared_down.detach().contiguous()
        tensors[f"transformer.{name}.lora_B.weight"] = layer.scale * layer.shared_up.detach()
    save_file(tensors, path, {"format": "pt"})


def _experts(backbone: Backbone) -> dict[str, Any]:
    return {
        f"{name}.{own}": parameter
        for name, layer in backbone.adapted.items()
        for own, parameter in layer.named_parameters()
        if own not in ("weight", "bias")
    }
