"""Embeddings of captions, computed once by a frozen text model: training then does without it."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from data_pipeline.contract import CONVENTIONS_VERSION, UserError, check_conventions
from modules.networks.text_backbones import PretrainedText, TextEmbedding
from modules.networks.weights_fingerprint import is_same_model

CONFIG_NAME = "text.json"


def write_text_cache(
    folder: Path, model: PretrainedText, captions: Iterable[str], batch_size: int
) -> int:
    """Embed captions that a folder does not hold yet, and the null caption; return how many.

    A file per caption, each complete or absent: `<sha256 of the caption>.safetensors`.

    Raises:
        UserError: the folder holds embeddings of another text model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / CONFIG_NAME
    content = {"conventions": CONVENTIONS_VERSION, "text_encoder": model.config}
    if record.is_file():
        stored = json.loads(record.read_text("utf-8"))
        named = stored["text_encoder"]
        check_conventions(stored.get("conventions"), str(folder))
        if not is_same_model(named, model.config):
            raise UserError(
                f"{folder} holds text of another model or length: delete it, or keep that"
            )
    # written also over what fits: caches of before there were fingerprints gain one
    temporary = record.with_suffix(".partial")
    temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    os.replace(temporary, record)
    new = [text for text in sorted({"", *captions}) if not _path(folder, text).is_file()]
    for start in range(0, len(new), batch_size):
        texts = new[start : start + batch_size]
        tokens, pooled = model.embed(texts)
        for row, text in enumerate(texts):
            found = {"tokens": tokens[row].cpu().clone()}
            if pooled is not None:
                found["pooled"] = pooled[row].cpu().clone()
            path = _path(folder, text)
            temporary = path.with_suffix(".partial")
            save_file(found, temporary)
            os.replace(temporary, path)
    return len(new)


class CachedText(nn.Module):
    """Reads the embeddings of captions that `write_text_cache` wrote.

    Args:
        folder: that it wrote to.

    Raises:
        UserError: the folder is none, or follows other conventions.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder)
        try:
            content = json.loads((self.folder / CONFIG_NAME).read_text("utf-8"))
            self.config: dict[str, Any] = content["text_encoder"]
            check_conventions(content["conventions"], folder)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{folder} holds no text embeddings ({type(error).__name__}): make them with "
                "encode.py conditioner=qwen3 (or flux1, sd3)"
            ) from error
        self.length: int = self.config["length"]
        self.register_buffer("placed", torch.empty(0), persistent=False)  # tells the device

    def embed(self, texts: list[str]) -> TextEmbedding:
        """Return the embeddings of captions, per token and of the whole.

        Raises:
            UserError: a caption was never embedded, or its file is damaged.
        """
        rows = []
        for text in texts:
            try:
                rows.append(load_file(_path(self.folder, text), str(self.placed.device)))
            except (OSError, SafetensorError) as error:
                raise UserError(
                    f"{self.folder} has no embedding of the caption {text[:60]!r} "
                    f"({type(error).__name__}): run encode.py again with the same conditioner"
                ) from error
        tokens = torch.stack([row["tokens"] for row in rows])
        return tokens, torch.stack([row["pooled"] for row in rows]) if "pooled" in rows[0] else None


def _path(folder: Path, text: str) -> Path:
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"
