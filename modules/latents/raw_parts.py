"""Latents before normalisation, kept part by part while a set is encoded.

What normalises them is known only when the whole set is encoded. Until then they lie in a folder
of numbered parts, each complete or absent, so that an interrupted run goes on with the next part.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class RawPart:
    """Some consecutive samples of a set.

    Args:
        uids: of the samples.
        captions: of each sample, any number.
        latents: packed, as the autoencoder gives them.
        coverage: share of a cell's pixels that show the asset, in [0, 1].
        vision: tokens of every view's rgb, by a vision encoder, if there is one.
    """

    uids: Sequence[str]
    captions: Sequence[Sequence[str]]
    latents: Float[Tensor, "b m v c h w"]
    coverage: Float[Tensor, "b v h w"]
    vision: Float[Tensor, "b v k q"] | None = None


class RawLatents:
    """A folder of parts. What it holds of other inputs is removed.

    Args:
        folder: made if it is not there.
        inputs: what the latents are a function of, as plain JSON values.
    """

    def __init__(self, folder: Path, inputs: dict[str, Any]) -> None:
        self.folder = folder
        record, text = folder / "inputs.json", json.dumps(inputs, sort_keys=True)
        if not record.is_file() or record.read_text("utf-8") != text:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            record.write_text(text, "utf-8")

    def has(self, number: int) -> bool:
        """Return whether a part is finished."""
        return self._path(number).is_file()

    def write(self, number: int, part: RawPart) -> None:
        """Write a part; it appears in one step."""
        temporary = self.folder / "unfinished.npz"
        vision: Any = {} if part.vision is None else {"vision": part.vision.cpu().numpy()}
        names = json.dumps([list(part.uids), [list(texts) for texts in part.captions]])
        np.savez(
            temporary,
            latents=part.latents.cpu().numpy(),
            coverage=part.coverage.cpu().numpy(),
            names=np.frombuffer(names.encode(), np.uint8),
            **vision,
        )
        os.replace(temporary, self._path(number))

    def __iter__(self) -> Iterator[RawPart]:
        """Read the parts without their vision tokens, of which statistics know nothing."""
        return self.read(vision=False)

    def read(self, *, vision: bool) -> Iterator[RawPart]:
        """Read the parts in their order, with their vision tokens if these are asked for."""
        asked = ("latents", "coverage", "vision") if vision else ("latents", "coverage")
        for path in sorted(self.folder.glob("part-*.npz")):
            with np.load(path) as stored:
                uids, captions = json.loads(stored["names"].tobytes())
                keys = [key for key in asked if key in stored.files]
                tensors = (torch.from_numpy(stored[key]) for key in keys)
                yield RawPart(uids, captions, *tensors)

    def remove(self) -> None:
        """Remove the folder: the finished set has taken its place."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:08d}.npz"
