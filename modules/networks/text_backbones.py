"""The text models that pretrained backbones were trained with, frozen, as their pipelines run them.

Padding is part of the embedding: FLUX.2, FLUX.1 and SD3 attend to it, so captions always have one
constant length. Longer ones are cut, which is told and counted.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from modules.networks.adapters import DTYPES
from modules.networks.pretrained_parts import load_part, locate
from modules.networks.text_cuts import tell_cuts
from modules.networks.weights_fingerprint import check_fingerprint, weights_fingerprint

CLIP_LENGTH = 77
ADVICE = (
    "give the local folder of a whole diffusers pipeline, or a hub model that this machine can "
    "reach and may read (conditioner.source)"
)

TextEmbedding = tuple[Float[Tensor, "b k e"], Float[Tensor, "b p"] | None]
"""Embeddings per token, and of whole captions where the backbone takes any."""


class PretrainedText(nn.Module, ABC):
    """Text models of one backbone, from the folders of its pipeline; never trained.

    Args:
        source: hub id or local folder of the pipeline.
        revision: of the hub repository.
        dtype: of the weights and embeddings, `float32` or `bfloat16`.
        length: text tokens per caption of the longest text model, padding included.
        fingerprint: that the weights must have (see `weights_fingerprint`); None: any.

    Raises:
        UserError: the source lacks a text model or its tokenizer, cannot be read, or holds other
            weights.
    """

    text_models: ClassVar[dict[str, str]]
    """Classes of transformers by folder; folders of tokenizers say `tokenizer` instead."""

    def __init__(
        self,
        source: str,
        *,
        revision: str | None = None,
        dtype: str = "bfloat16",
        length: int,
        fingerprint: str | None = None,
    ) -> None:
        super().__init__()
        source = locate(source, ADVICE)
        self.config: dict[str, Any] = {
            "kind": type(self).__name__,
            "source": source,
            "revision": revision,
            "dtype": dtype,
            "length": length,
        }
        self.length = length
        self.cut: set[str] = set()
        located = {"revision": revision, "advice": ADVICE}
        self.tokenizers = {
            folder: load_part(
                "AutoTokenizer",
                source,
                subfolder=folder.replace("text_encoder", "tokenizer"),
                **located,
            )
            for folder in self.text_models
        }
        self.models = nn.ModuleDict(
            {
                folder: load_part(model, source, subfolder=folder, dtype=DTYPES[dtype], **located)
                for folder, model in self.text_models.items()
            }
        )
        self.config["fingerprint"] = weights_fingerprint(self.models)
        check_fingerprint(self.config["fingerprint"], fingerprint, source)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "PretrainedText":
        """Stay in evaluation mode: T5 has dropout."""
        return super().train(False)

    @torch.no_grad()
    def embed(self, texts: list[str]) -> TextEmbedding:
        """Return the embeddings of captions, per token and of the whole."""
        return self._embed(texts)

    @abstractmethod
    def _embed(self, texts: list[str]) -> TextEmbedding:
        """Do so."""

    def unknown_words(self, text: str) -> list[str]:
        """Return no word: pretrained text models read any text."""
        return []

    def _tokenize(
        self, folder: str, texts: list[str], length: int
    ) -> tuple[Int[Tensor, "b k"], Int[Tensor, "b k"]]:
        """Return token ids and attention mask, padded or cut to `length`."""
        tokens = self.tokenizers[folder](
            texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        device = next(self.models.parameters()).device
        return tokens.input_ids.to(device), tokens.attention_mask.to(device)

    def _warn_of_cuts(self, folder: str, texts: list[str]) -> None:
        """Count the texts that do not fit into `length`, and warn of those not seen before."""
        ids = self.tokenizers[folder](texts, padding=False, truncation=False).input_ids
        longer = {text for text, row in zip(texts, ids, strict=True) if len(row) > self.length}
        tell_cuts(longer, self.cut, f"{self.length} tokens")


class Qwen3Text(PretrainedText):
    """Text of FLUX.2 [klein]: the hidden states of three layers of Qwen3, side by side.

    Args:
        source: see `PretrainedText`, as the next four.
        revision: of the hub repository.
        dtype: of the weights.
        length: tokens per caption.
        fingerprint: of the weights.
        layers: whose hidden states are taken; 0 is the embedding of the tokens.
    """

    text_models: ClassVar = {"text_encoder": "Qwen3Model"}

    def __init__(
        self,
        source: str,
        *,
        revision: str | None = None,
        dtype: str = "bfloat16",
        length: int = 512,
        fingerprint: str | None = None,
        layers: tuple[int, ...] | list[int] = (9, 18, 27),
    ) -> None:
        super().__init__(
            source, revision=revision, dtype=dtype, length=length, fingerprint=fingerprint
        )
        self.layers = tuple(layers)
        self.config["layers"] = list(layers)

    def _embed(self, texts: list[str]) -> TextEmbedding:
        asked = [
            self.tokenizers["text_encoder"].apply_chat_template(
                [{"role": "user", "content": text}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
            )
            for text in texts
        ]
        self._warn_of_cuts("text_encoder", asked)
        ids, mask = self._tokenize("text_encoder", asked, self.length)
        states = self.models["text_encoder"](
            input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
        ).hidden_states
        return torch.cat([states[layer] for layer in self.layers], dim=-1), None


class Flux1Text(PretrainedText):
    """Text of FLUX.1: T5 per token, and CLIP's embedding of the whole caption."""

    text_models: ClassVar = {"text_encoder": "CLIPTextModel", "text_encoder_2": "T5EncoderModel"}

    def __init__(
        self,
        source: str,
        *,
        revision: str | None = None,
        dtype: str = "bfloat16",
        length: int = 512,
        fingerprint: str | None = None,
    ) -> None:
        super().__init__(
            source, revision=revision, dtype=dtype, length=length, fingerprint=fingerprint
        )

    def _embed(self, texts: list[str]) -> TextEmbedding:
        self._warn_of_cuts("text_encoder_2", texts)
        ids, _ = self._tokenize("text_encoder_2", texts, self.length)
        tokens = self.models["text_encoder_2"](ids).last_hidden_state
        ids, _ = self._tokenize("text_encoder", texts, CLIP_LENGTH)
        return tokens, self.models["text_encoder"](ids).pooler_output


class Sd3Text(PretrainedText):
    """Text of Stable Diffusion 3.5: two CLIPs side by side, then T5; both CLIPs of the whole."""

    text_models: ClassVar = {
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
    }

    def __init__(
        self,
        source: str,
        *,
        revision: str | None = None,
        dtype: str = "bfloat16",
        length: int = 256,
        fingerprint: str | None = None,
    ) -> None:
        super().__init__(
            source, revision=revision, dtype=dtype, length=length, fingerprint=fingerprint
        )

    def _embed(self, texts: list[str]) -> TextEmbedding:
        self._warn_of_cuts("text_encoder_3", texts)
        clips = []
        for folder in ("text_encoder", "text_encoder_2"):
            ids, _ = self._tokenize(folder, texts, CLIP_LENGTH)
            clips.append(self.models[folder](ids, output_hidden_states=True))
        ids, _ = self._tokenize("text_encoder_3", texts, self.length)
        t5 = self.models["text_encoder_3"](ids).last_hidden_state
        clip = torch.cat([each.hidden_states[-2] for each in clips], dim=-1)
        clip = nn.functional.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
        return torch.cat([clip, t5], dim=1), torch.cat([each.text_embeds for each in clips], dim=-1)


TEXT_MODELS: dict[str, type[PretrainedText]] = {
    each.__name__: each for each in (Qwen3Text, Flux1Text, Sd3Text)
}


def load_text(config: dict[str, Any]) -> PretrainedText:
    """Load the text models that a `PretrainedText.config` names."""
    options = dict(config)
    return TEXT_MODELS[options.pop("kind")](**options)
