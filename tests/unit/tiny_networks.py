"""Tiny random networks of the real classes, saved as their users save them."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, Dinov2Config, Dinov2Model

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
NUM_INCEPTION_FEATURES = 24  # of 2048, whose matrices take seconds
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def save_clip(folder: Path) -> Path:
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    end = len(vocabulary) - 1
    text = {
        **TINY, "vocab_size": len(vocabulary), "intermediate_size": 32,
        "max_position_embeddings": 16, "bos_token_id": end - 1, "eos_token_id": end,
        "pad_token_id": end,
    }  # fmt: skip
    vision = {**TINY, "intermediate_size": 32, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    return folder


def save_dinov2(folder: Path) -> Path:
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**TINY, image_size=56, patch_size=14)).save_pretrained(folder)
    return folder


class Pooled(nn.Module):
    """Stands for FID's Inception, by the same call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, NUM_INCEPTION_FEATURES)

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        assert images.dtype == torch.uint8
        assert return_features
        return self.linear(images.float().mean(dim=[2, 3]) / 255.0)


def save_inception(path: Path) -> Path:
    torch.manual_seed(0)
    torch.jit.script(Pooled()).save(str(path))
    return path
