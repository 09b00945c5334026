"""Tiny random vision encoders of the real classes, in folders as their users save them."""

import json
from pathlib import Path

import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
)

WIDTH, SIDE_PX, PATCH_PX = 16, 16, 8
NUM_TOKENS = (SIDE_PX // PATCH_PX) ** 2
SIZES = {
    "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": SIDE_PX, "patch_size": PATCH_PX,
}  # fmt: skip
BUILD = {
    "SiglipVisionModel": lambda: SiglipVisionModel(
        SiglipVisionConfig(**SIZES, intermediate_size=32)
    ),
    "CLIPVisionModel": lambda: CLIPVisionModel(CLIPVisionConfig(**SIZES, intermediate_size=32)),
    "Dinov2Model": lambda: Dinov2Model(Dinov2Config(**SIZES)),
}
PREPROCESSING = {
    "SiglipVisionModel": {"size": {"height": SIDE_PX, "width": SIDE_PX}},
    "CLIPVisionModel": {"size": 20, "crop_size": SIDE_PX, "do_center_crop": True},
    "Dinov2Model": {
        "size": {"shortest_edge": 20}, "do_center_crop": True,
        "crop_size": {"height": SIDE_PX, "width": SIDE_PX},
    },
}  # fmt: skip
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def save_vision(kind: str, folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    BUILD[kind]().save_pretrained(folder)
    content = PREPROCESSING[kind] | {"image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return folder
