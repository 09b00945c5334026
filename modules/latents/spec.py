"""What a 2.5D latent means: packing, normalisation, and the autoencoder that it belongs to."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data_pipeline.contract import CONVENTIONS_VERSION, MODALITIES, UserError, check_conventions

SPEC_NAME = "latent_spec.json"
CARRIED = "statistics that the autoencoder carries"


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """Meaning of the numbers in a latent cache and in an exported denoiser.

    Args:
        packing: side of the square of autoencoder cells that becomes one packed cell.
        mean: subtracted, per modality and packed channel.
        std: divided by, per modality and packed channel.
        origin: where mean and std come from, in words.
        autoencoder: fingerprint of the encoder that made the latents; those of older versions name
            the decoder's weights with it.
        num_views: views per sample.
        grid: packed cells along the side of one view.
        conventions: version of the conventions of the encoded images.
    """

    packing: int
    mean: Sequence[Sequence[float]]
    std: Sequence[Sequence[float]]
    origin: str
    autoencoder: str
    num_views: int
    grid: int
    conventions: int = CONVENTIONS_VERSION

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            rows = tuple(tuple(float(x) for x in row) for row in getattr(self, name))
            if len(rows) != len(MODALITIES) or len({len(row) for row in rows}) != 1:
                raise ValueError(f"latent {name} must be one row per modality, of equal length")
            object.__setattr__(self, name, rows)
        if len(self.mean[0]) != len(self.std[0]) or len(self.mean[0]) % self.packing**2:
            raise ValueError("latent mean, std and packing do not fit each other")
        if min(map(min, self.std)) <= 0.0:
            raise ValueError("latent std must be positive")

    @property
    def channels(self) -> int:
        """Channels of a packed cell."""
        return len(self.mean[0])

    @property
    def is_carried(self) -> bool:
        """Whether mean and std are the autoencoder's own, as in the training of its backbone.

        Those of normal and coord may be corrected (`modules/latents/modality_affine.py`).
        """
        return self.origin.startswith(CARRIED)

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary; `LatentSpec.from_json` gives the spec back, bit for bit."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: object, where: str) -> "LatentSpec":
        """Read a spec.

        Raises:
            UserError: it is damaged, or of other conventions; `where` names it in the message.
        """
        try:
            spec = cls(**content)  # pyright: ignore[reportCallIssue]
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: not a latent spec ({error}): run encode.py again") from error
        check_conventions(spec.conventions, where)
        return spec

    def save(self, directory: Path) -> None:
        """Write the spec into a folder."""
        (directory / SPEC_NAME).write_text(json.dumps(self.to_json(), indent=1) + "\n", "utf-8")

    @classmethod
    def load(cls, directory: Path) -> "LatentSpec":
        """Read the spec of a folder."""
        path = directory / SPEC_NAME
        try:
            content = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read ({type(error).__name__}): export the denoiser again"
            ) from error
        return cls.from_json(content, str(path))

    def check_autoencoder(self, autoencoder: nn.Module, where: str) -> None:
        """Raise UserError unless the autoencoder makes this spec's latents; any decoder will do."""
        found = encoder_fingerprint(autoencoder)
        # Specs of older versions name all weights: these are hashed only where the encoder differs.
        if found != self.autoencoder and fingerprint(autoencoder) != self.autoencoder:
            raise UserError(
                f"{where}: the latents were made by encoder {self.autoencoder}, this one is "
                f"{found}: encode and train again with it, or bring the old autoencoder back"
            )


DECODER_PARTS = ("decoder.", "post_quant_conv.")
"""How the names of the weights begin that no latent depends on."""


def fingerprint(autoencoder: nn.Module) -> str:
    """Return 16 hex digits that name the weights of an autoencoder, whatever file held them."""
    return _digest(autoencoder.state_dict())


def encoder_fingerprint(autoencoder: nn.Module) -> str:
    """Return 16 hex digits that name what makes latents: every weight but the decoder's.

    A fine-tuned decoder keeps it, and so takes the latents that the original made.
    """
    weights = autoencoder.state_dict()
    return _digest({n: x for n, x in weights.items() if not n.startswith(DECODER_PARTS)})


def _digest(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}:{tuple(values.shape)}:".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]
