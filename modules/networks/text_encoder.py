"""A small text encoder trained together with the denoiser: words, embeddings, transformer layers.

The rule for padding: every caption is padded (or cut) to one constant length with a learned padding
word, which is attended like any other. FLUX.2 does not mask padding either, so nothing depends on
what else is in the batch. The null caption of guidance is the empty text: padding only.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from data_pipeline.contract import UserError
from modules.networks.text_cuts import tell_cuts

PADDING, UNKNOWN = 0, 1
SPECIAL_WORDS = ("<pad>", "<unk>")


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case, of any script, without punctuation."""
    return re.findall(r"\w+", text.lower())


class Vocabulary:
    """The words that the text encoder knows, by index.

    Args:
        words: all words, `<pad>` and `<unk>` first.
    """

    def __init__(self, words: Iterable[str]):
        self.words = list(words)
        if tuple(self.words[:2]) != SPECIAL_WORDS or len(set(self.words)) != len(self.words):
            raise UserError(
                "not a vocabulary: it must hold distinct words and begin with "
                f"{', '.join(SPECIAL_WORDS)}; run encode.py again"
            )
        self._index = {word: index for index, word in enumerate(self.words)}

    @classmethod
    def from_captions(cls, captions: Iterable[str], max_words: int = 4096) -> "Vocabulary":
        """Collect the words of captions, the most frequent first, ties in alphabetical order."""
        counts = Counter(word for caption in captions for word in split_words(caption))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls([*SPECIAL_WORDS, *ranked[: max_words - len(SPECIAL_WORDS)]])

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, texts: list[str], length: int) -> Int[Tensor, "b k"]:
        """Return word indices, padded or cut to `length`; unknown words become `<unk>`."""
        rows = torch.full((len(texts), length), PADDING)
        for row, text in zip(rows, texts, strict=True):
            indices = [self._index.get(word, UNKNOWN) for word in split_words(text)[:length]]
            row[: len(indices)] = torch.tensor(indices, dtype=torch.long)
        return rows

    def unknown_words(self, text: str) -> list[str]:
        """Return the words of a text that no training caption held."""
        return [word for word in split_words(text) if word not in self._index]

    def save(self, path: Path) -> None:
        """Write the words as JSON."""
        path.write_text(json.dumps(self.words, ensure_ascii=False, indent=0) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read what `save` wrote."""
        return cls(json.loads(path.read_text("utf-8")))


class TextEncoder(nn.Module):
    """Embed captions for the denoiser.

    Args:
        max_words: rows of the embedding table; a vocabulary may hold fewer words.
        length: text tokens per caption, padding included.
        width: width of the embeddings, FLUX.2's `joint_attention_dim`.
        num_layers: transformer layers.
        num_heads: attention heads.
    """

    def __init__(
        self,
        max_words: int = 4096,
        length: int = 12,
        width: int = 192,
        num_layers: int = 1,
        num_heads: int = 4,
    ):
        super().__init__()
        self.config = {
            "max_words": max_words,
            "length": length,
            "width": width,
            "num_layers": num_layers,
            "num_heads": num_heads,
        }
        self.length = length
        self.vocabulary: Vocabulary | None = None
        self.cut: set[str] = set()  # captions of more words
        self.word_embedding = nn.Embedding(max_words, width)
        self.position_embedding = nn.Parameter(torch.zeros(length, width))
        layer = nn.TransformerEncoderLayer(
            width, num_heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)

    def forward(self, words: Int[Tensor, "b k"]) -> Float[Tensor, "b k e"]:
        """Return one embedding per word position; `k` is the constant length."""
        return self.layers(self.word_embedding(words) + self.position_embedding)

    def embed(self, texts: list[str]) -> tuple[Float[Tensor, "b k e"], None]:
        """Return the embeddings of captions in the words of `vocabulary`; none of the whole.

        Words beyond `length` are cut off: that is told once of each caption, and counted in `cut`.
        """
        assert self.vocabulary is not None
        longer = {text for text in texts if len(split_words(text)) > self.length}
        tell_cuts(longer, self.cut, f"{self.length} words")
        words = self.vocabulary.encode(texts, self.length)
        return self(words.to(self.position_embedding.device)), None

    def unknown_words(self, text: str) -> list[str]:
        """Return the words of a text that no training caption held."""
        assert self.vocabulary is not None
        return self.vocabulary.unknown_words(text)
