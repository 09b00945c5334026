"""What benchmarks/adaptation.py trains: its data, the stand-in for a 2D model, and the arms."""

import functools
import io
import json
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modules.losses.flow import TimestepMix
from modules.networks.adapters import MixtureOfLoRA
from modules.networks.backbone import Backbone
from modules.networks.denoiser import JointDenoiser
from modules.networks.flux2 import Flux2Backbone
from modules.networks.text_encoder import TextEncoder, Vocabulary

TEXT_DROPOUT = 0.1
CAPTION_WORDS = 16
TINY = {
    "in_channels": 128, "num_layers": 2, "num_single_layers": 4, "attention_head_dim": 32,
    "num_attention_heads": 6, "joint_attention_dim": 192, "timestep_guidance_channels": 256,
    "mlp_ratio": 3.0, "axes_dims_rope": [8, 8, 8, 8], "rope_theta": 2000, "guidance_embeds": False,
}  # fmt: skip
"""conf/denoiser/tiny.yaml, but on latents that are packed as FLUX.2's are: 2 x 2, 128 channels."""
SIZES: dict[str, dict[str, Any]] = {
    "tiny": TINY,
    "small": {**TINY, "num_layers": 1, "num_single_layers": 2, "num_attention_heads": 4},
}
BATCHES = {"tiny": 16, "small": 4}
"""Assets per step of the arms; the stand-in sees 16 times as many single views."""

IMAGE_LAYERS = ("*.attn.to_[qkv]", "*.attn.to_out*", "*.ff.*", "single_*")
"""All layers that image tokens go through: only there can experts per modality be, so that only
these give the three ways of LoRA exactly equal numbers of parameters."""
ARMS: dict[str, MixtureOfLoRA | None] = {
    "mixture of LoRA": MixtureOfLoRA(shared_rank=24, modality_rank=8, targets=IMAGE_LAYERS),
    "shared LoRA": MixtureOfLoRA(shared_rank=48, modality_rank=0, targets=IMAGE_LAYERS),
    "per-modality LoRA": MixtureOfLoRA(shared_rank=0, modality_rank=16, targets=IMAGE_LAYERS),
    "full fine-tuning": None,
    "from scratch": None,
}
LEARNING_RATES = {
    **dict.fromkeys(ARMS, (1e-3, 3e-3, 1e-2)),
    "full fine-tuning": (3e-4, 1e-3, 3e-3),
}
MIXES = {
    "mixed": TimestepMix(mean=1.0, mean_tokens=96),
    "independent": TimestepMix(
        joint=0.0, texture=0.0, geometry=0.0, independent=1.0, mean=1.0, mean_tokens=96
    ),
}
"""Shares as in the framework: joint, texture from geometry, geometry from rgb, independent."""


@dataclass(frozen=True)
class Data:
    """Latents on the device.

    Args:
        rgb: of all assets (n v c h w): validation first, then adaptation, then the others.
        geometry: normal and coord of the first two (n 2 v c h w).
        captions: of all assets.
        vocabulary: their words.
        num_validation: assets held back from all training.
        num_adaptation: assets that the arms are trained on.
    """

    rgb: Tensor
    geometry: Tensor
    captions: list[str]
    vocabulary: list[str]
    num_validation: int
    num_adaptation: int

    @classmethod
    def load(cls, path: Path, device: str) -> "Data":
        """Read what benchmarks/adaptation_data.py wrote."""
        with np.load(io.BytesIO(lzma.decompress(path.read_bytes()))) as file:
            about = json.loads(file["about"].tobytes())
            step = 1.0 / about.pop("steps_per_std")
            rgb, geometry = (torch.from_numpy(file[name]) for name in ("rgb", "geometry"))
        return cls(rgb=rgb.to(device) * step, geometry=geometry.to(device) * step, **about)

    def assets(self, which: Tensor) -> Tensor:
        """Return whole 2.5D latents (b m v c h w)."""
        return torch.cat([self.rgb[which][:, None], self.geometry[which]], dim=1)


class SingleViews(nn.Module):
    """A backbone as a model of single images: what it was before anyone spoke of 2.5D.

    Args:
        backbone: that runs one image of one modality in its first slot, as its class's `forward()`.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """Predict images (b 1 1 c h w) at noise levels (b 1) from text (b k e)."""
        slots = torch.zeros(1, dtype=torch.long, device=latents.device)
        return self.backbone.run(
            latents, timesteps, text, text_timesteps=timesteps[:, 0], pooled=None, embedding=None,
            slots=slots[None], references=None, reference_slots=slots[:0],
        )  # fmt: skip


def build_text_encoder(data: Data) -> TextEncoder:
    """Return an untrained text encoder for the words of the captions."""
    encoder = TextEncoder(max_words=len(data.vocabulary), length=CAPTION_WORDS)
    encoder.vocabulary = Vocabulary(data.vocabulary)
    return encoder.to(data.rgb.device)


def save_stand_in(folder: Path, backbone: Backbone, encoder: TextEncoder) -> None:
    """Write the stand-in as diffusers does, and its text encoder beside it."""
    backbone.transformer.save_pretrained(folder / "transformer", safe_serialization=True)
    weights = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    save_file(weights, folder / "text_encoder.safetensors")


def embed_captions(folder: Path, data: Data) -> Tensor:
    """Return what the stand-in's text encoder makes of all captions, and last of no caption."""
    encoder = build_text_encoder(data)
    encoder.load_state_dict(load_file(folder / "text_encoder.safetensors"))
    with torch.no_grad():
        return encoder.embed([*data.captions, ""])[0]


def build_arm(
    arm: str, size: str, folder: Path, seed: int, text_timestep: str = "largest"
) -> JointDenoiser:
    """Return the denoiser of an arm at its first step; what it trains requires gradients.

    Args:
        arm: of ARMS.
        size: of SIZES.
        folder: of the stand-in.
        seed: of what is drawn at the start: experts, or the whole model.
        text_timestep: rule of the text's noise level.
    """
    torch.manual_seed(seed)
    if arm == "from scratch":
        options = {**SIZES[size], "text_timestep": text_timestep}
        return JointDenoiser.from_scratch(num_views=6, **options)
    load = functools.partial(Flux2Backbone.from_pretrained, str(folder), dtype="float32")
    return JointDenoiser.from_pretrained(
        num_views=6, backbone=load, adapters=ARMS[arm], text_timestep=text_timestep
    )


def count_trained(denoiser: JointDenoiser) -> int:
    """Return how many numbers an arm trains."""
    return sum(p.numel() for p in denoiser.parameters() if p.requires_grad)
