"""Tiny random text models of the real classes, in the folders of a diffusers pipeline."""

from pathlib import Path

import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% if not enable_thinking %}!{% endif %}"
    "{% endif %}"
)


def save_qwen3(folder: Path) -> Path:
    torch.manual_seed(0)
    characters = [*LETTERS, "Ġ", "!", "<", ">", "|", "_"]
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {word: i for i, word in enumerate([*characters, *specials])}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary, merges=[], extra_special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "tokenizer")
    config = Qwen3Config(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=4, head_dim=8,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder / "text_encoder")
    return folder


def save_clip_text(folder: Path, suffix: str, kind: type) -> None:
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    end = len(vocabulary) - 1
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
    config = CLIPTextConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        vocab_size=len(vocabulary),
        max_position_embeddings=77, bos_token_id=end - 1, eos_token_id=end, pad_token_id=end,
        projection_dim=8,
    )  # fmt: skip
    kind(config).save_pretrained(folder / f"text_encoder{suffix}")


def save_t5(folder: Path, suffix: str) -> None:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
    pieces += [(letter, -2.0) for letter in LETTERS]
    T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=20).save_pretrained(
        folder / f"tokenizer{suffix}"
    )
    config = T5Config(
        vocab_size=64, d_model=40, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.5
    )
    T5EncoderModel(config).save_pretrained(folder / f"text_encoder{suffix}")


def save_flux1(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    save_clip_text(folder, "", CLIPTextModel)
    save_t5(folder, "_2")
    return folder


def save_sd3(folder: Path) -> Path:
    torch.manual_seed(0)
    save_clip_text(folder, "", CLIPTextModelWithProjection)
    save_clip_text(folder, "_2", CLIPTextModelWithProjection)
    save_t5(folder, "_3")
    return folder
