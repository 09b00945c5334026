"""LPIPS v0.1 on AlexNet: how different two images look (Zhang et al., CVPR 2018).

The trunk is torchvision's ImageNet AlexNet, the linear heads are the authors'; neither library is
needed. What the file of weights holds, and where it comes from: docs/metrics.md.
"""

import functools
import pathlib
from collections.abc import Mapping

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from jaxtyping import Bool, Float
from numpy import ndarray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from data_pipeline.contract import UserError

SMALLEST_PX = 31
"""Below this side AlexNet's last layers see nothing."""

_TAPS = (1, 4, 7, 9, 11)  # the five ReLUs
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Lpips(nn.Module):
    """The distance of image pairs, 0 for equal ones.

    Args:
        weights: tensors by name: `features.N.weight` and `.bias` as torchvision numbers them, and
            `linK.model.1.weight` of the five heads.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        heads = {f"lin{k}.model.1.weight": weights[f"lin{k}.model.1.weight"] for k in range(5)}
        self.heads = nn.ParameterList(heads.values())
        trunk = {key: value for key, value in weights.items() if key not in heads}
        self.features.load_state_dict({k.removeprefix("features."): v for k, v in trunk.items()})
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def forward(
        self, first: Float[Tensor, "b 3 h w"], second: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """Return the distance of each pair; sRGB images in [0, 1]."""
        return torch.stack([x.mean(dim=(1, 2)) for x in self._differences(first, second)]).sum(0)

    def distance_map(
        self, first: Float[Tensor, "b 3 h w"], second: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b h w"]:
        """Return the distance around every pixel: that of the layers, enlarged bilinearly."""
        size = first.shape[-2:]
        enlarged = [
            nn.functional.interpolate(x[:, None], size, mode="bilinear")[:, 0]
            for x in self._differences(first, second)
        ]
        return torch.stack(enlarged).sum(dim=0)

    def _differences(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """Return the weighted squared difference `b hl wl` of every layer."""
        pairs = zip(self.heads, self._taps(first), self._taps(second), strict=True)
        return [
            nn.functional.conv2d((_unit_channels(a) - _unit_channels(b)) ** 2, head)[:, 0]
            for head, a, b in pairs
        ]

    def _taps(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        x = (2.0 * images - 1.0 - self.shift) / self.scale
        taps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in _TAPS:
                taps.append(x)
        return taps


def _unit_channels(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    return x / (x.norm(dim=1, keepdim=True) + 1e-10)


def lpips_figures(
    network: Lpips,
    first: Float[ndarray, "v h w 3"],
    second: Float[ndarray, "v h w 3"],
    mask: Bool[ndarray, "v h w"],
) -> dict[str, float]:
    """Return `lpips_unmasked`, the mean over views, and `lpips_masked`, the mean over the mask.

    Args:
        network: see `load_lpips`.
        first: sRGB in [0, 1].
        second: the same.
        mask: pixels of all views over which the distance map is averaged.
    """
    images = [
        torch.from_numpy(np.moveaxis(rgb, -1, 1).astype(np.float32)) for rgb in (first, second)
    ]
    with torch.inference_mode():
        unmasked = float(network(*images).mean())
        masked = network.distance_map(*images)[torch.from_numpy(mask)]
    return {
        "lpips_masked": float(masked.mean()) if len(masked) else 0.0,
        "lpips_unmasked": unmasked,
    }


@functools.lru_cache(maxsize=1)
def load_lpips(weights: str) -> Lpips:
    """Return the network whose weights lie at a path, or on the Hugging Face hub.

    Args:
        weights: a .safetensors file, or OWNER/REPOSITORY/FILE.safetensors on the hub.

    Raises:
        UserError: there is no such file, or it holds other weights.
    """
    path = pathlib.Path(weights)
    parts = weights.split("/")
    if not path.is_file():
        if len(parts) < 3 or path.is_absolute() or parts[0] in ("", ".", ".."):
            raise UserError(
                f"lpips_weights={weights} does not exist: give a .safetensors file, or "
                "OWNER/REPOSITORY/FILE on the Hugging Face hub (docs/metrics.md says what it holds)"
            )
        try:
            path = pathlib.Path(hf_hub_download("/".join(parts[:2]), "/".join(parts[2:])))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"lpips_weights={weights} is neither a file nor to be had from the Hugging Face "
                f"hub ({reason}): check the path or the name"
            ) from error
    try:
        return Lpips(load_file(path))
    except (SafetensorError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"lpips_weights={weights} holds no LPIPS v0.1 AlexNet weights ({reason}): "
            "docs/metrics.md lists its tensors"
        ) from error
