"""A frozen vision encoder: its patch tokens tell the denoiser what reference images show.

Latents say what each patch looks like, these say what it is. The denoiser projects them to the
width of its text, behind which they follow as further tokens (decision 0012).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from data_pipeline.contract import UserError
from modules.networks.adapters import DTYPES
from modules.networks.pretrained_parts import load_part, locate
from modules.networks.weights_fingerprint import check_fingerprint, weights_fingerprint

LEADING_TOKENS = {"SiglipVisionModel": 0, "CLIPVisionModel": 1, "Dinov2Model": 1}
"""Classes of transformers, and how many tokens of each come before those of the patches."""

ADVICE = (
    "give the local folder, or a hub model that this machine can reach, of a SigLIP, DINOv2 or "
    "CLIP with its preprocessor_config.json (vision.source), and its class as vision.kind"
)


class VisionEncoder(nn.Module):
    """Patch tokens of SigLIP, DINOv2 or CLIP; never trained.

    Args:
        source: hub id or local folder of the model; of SigLIP and CLIP the whole one will do.
        kind: `SiglipVisionModel`, `Dinov2Model` or `CLIPVisionModel`.
        revision: of the hub repository.
        dtype: of the weights, `float32` or `bfloat16`.
        fingerprint: that the weights must have (see `weights_fingerprint`); None: any.

    Raises:
        UserError: the kind is none of these; the source cannot be read, is of another kind, or has
            other weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        source: str,
        *,
        kind: str = "SiglipVisionModel",
        revision: str | None = None,
        dtype: str = "bfloat16",
        fingerprint: str | None = None,
    ) -> None:
        super().__init__()
        if kind not in LEADING_TOKENS or dtype not in DTYPES:
            raise UserError(
                f"vision.kind={kind} must be one of {', '.join(LEADING_TOKENS)}, and "
                f"vision.dtype={dtype} {' or '.join(DTYPES)}"
            )
        self.kind = kind
        source = locate(source, ADVICE)
        self.model: Any = load_part(
            kind, source, advice=ADVICE, revision=revision, dtype=DTYPES[dtype]
        )
        found = weights_fingerprint(self.model)
        check_fingerprint(found, fingerprint, source)
        self.config = {
            "source": source, "kind": kind, "revision": revision, "dtype": dtype,
            "fingerprint": found,
        }  # fmt: skip
        self.side_px, mean, std = _preprocessing(source, revision)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        self.requires_grad_(False)
        self.eval()

    @property
    def width(self) -> int:
        """Numbers of a token."""
        return self.model.config.hidden_size

    @property
    def num_tokens(self) -> int:
        """Tokens of an image; what patches do not fill at its right and lower edge is not seen."""
        return (self.side_px // self._patch_px) ** 2

    @property
    def _patch_px(self) -> int:
        return self.model.config.patch_size

    @property
    def about(self) -> dict[str, Any]:
        """What a cache of tokens says of them: `encoder`, `width`, `num_tokens`."""
        return {"encoder": self.config, "width": self.width, "num_tokens": self.num_tokens}

    def train(self, mode: bool = True) -> "VisionEncoder":
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def embed(self, images: Float[Tensor, "*batch 3 h w"]) -> Float[Tensor, "*batch k q"]:
        """Return the patch tokens of square images in [-1, 1], row by row of the image.

        The whole image is resized to the encoder's size by an antialiased bicubic filter, and never
        cropped. Every token is brought to mean 0 and deviation 1: encoders differ in scale by
        orders of magnitude, and zeros can then stand for no image.
        """
        size = (self.side_px, self.side_px)
        flat = images.flatten(0, -4).float()
        resized = functional.interpolate(flat, size, mode="bicubic", antialias=True)
        pixels = (resized.clamp(-1.0, 1.0) + 1.0) / 2.0
        pixels = ((pixels - self.mean) / self.std).to(self.model.dtype)
        tokens = self.model(pixel_values=pixels).last_hidden_state[:, LEADING_TOKENS[self.kind] :]
        normalised = functional.layer_norm(tokens.float(), tokens.shape[-1:])
        return normalised.unflatten(0, images.shape[:-3])


def _preprocessing(source: str, revision: str | None) -> tuple[int, list[float], list[float]]:
    """Return side, mean and deviation of the images that the model was trained on.

    Read from its `preprocessor_config.json`; the processors themselves may want torchvision.
    """
    from transformers.image_processing_base import ImageProcessingMixin  # takes seconds

    try:
        found, _ = ImageProcessingMixin.get_image_processor_dict(source, revision=revision)
        size = found["crop_size" if found.get("do_center_crop") else "size"]
        side = size if isinstance(size, int) else next(iter(size.values()))
        return int(side), list(found["image_mean"]), list(found["image_std"])
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise UserError(f"cannot read how {source} takes images ({error}): {ADVICE}") from error
