"""Networks that turn images into features for figures of sets: CLIP, DINOv2, Inception.

Images are fitted to a network as its figure's own code does, without torchvision: 8 bit RGB,
resized by Pillow's antialiased bicubic filter. None of the weights is part of this project.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPTokenizer, Dinov2Model, PretrainedConfig

from data_pipeline.contract import UserError

Images = Sequence[UInt8[ndarray, "_ _ 3"]]
"""sRGB images; they may differ in size."""

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DINOV2_PX = 224


class ClipNetwork:
    """CLIP's embeddings of images and texts, at unit length.

    Images are cropped to the central square and resized, as by OpenAI's CLIP and by CMMD's code.

    Args:
        source: hub id (openai/clip-vit-large-patch14-336), or folder with model and tokenizer.
        device: where it runs.
    """

    def __init__(self, source: str, device: torch.device) -> None:
        self._model: Any = _pretrained(CLIPModel, "clip", source).eval().to(device)
        self._tokenizer: Any = _pretrained(CLIPTokenizer, "clip", source)
        self._device = device
        self._max_tokens = self._model.config.text_config.max_position_embeddings

    @property
    def num_features(self) -> int:
        """Length of an embedding."""
        return self._model.config.projection_dim

    @property
    def side_px(self) -> int:
        """Side of the images that the network sees."""
        return self._model.config.vision_config.image_size

    @torch.no_grad()
    def features(self, images: Images) -> Float[Tensor, "b d"]:
        """Return the embeddings of images, of unit length."""
        pixels = _pixels(images, self.side_px, CLIP_MEAN, CLIP_STD, crop=True).to(self._device)
        embeddings = self._model.get_image_features(pixel_values=pixels).pooler_output
        return normalize(embeddings.float(), dim=-1).cpu()

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Float[Tensor, "k d"]:
        """Return the embeddings of texts, of unit length; long ones are cut, see `is_cut`."""
        rows = []
        for start in range(0, len(texts), 64):
            tokens = self._tokenizer(
                list(texts[start : start + 64]),
                padding=True,
                truncation=True,
                max_length=self._max_tokens,
                return_tensors="pt",
            ).to(self._device)
            rows.append(self._model.get_text_features(**tokens).pooler_output)
        return normalize(torch.cat(rows).float(), dim=-1).cpu()

    def is_cut(self, text: str) -> bool:
        """Return whether a text holds more than CLIP reads, which is 77 tokens."""
        return len(self._tokenizer(text)["input_ids"]) > self._max_tokens


class Dinov2Network:
    """The class token of DINOv2, behind the last norm.

    Images are resized to 224 x 224 whatever their shape, as by the code of Stein et al. (2023).

    Args:
        source: hub id, such as facebook/dinov2-large, or folder.
        device: where it runs.
    """

    def __init__(self, source: str, device: torch.device) -> None:
        self._model: Any = _pretrained(Dinov2Model, "dinov2", source).eval().to(device)
        self._device = device

    @property
    def num_features(self) -> int:
        """Width of the class token."""
        return self._model.config.hidden_size

    @torch.no_grad()
    def features(self, images: Images) -> Float[Tensor, "b d"]:
        """Return the class tokens of images."""
        pixels = _pixels(images, DINOV2_PX, IMAGENET_MEAN, IMAGENET_STD, crop=False)
        return self._model(pixel_values=pixels.to(self._device)).pooler_output.float().cpu()


class InceptionNetwork:
    """The pooled features of FID's own Inception, which resizes images itself.

    Args:
        source: the TorchScript file inception-2015-12-05.pt of StyleGAN's metrics: TensorFlow's
            weights and resizing, called with 8 bit images and `return_features`.
        device: where it runs.
    """

    num_features = 2048

    @torch.no_grad()
    def __init__(self, source: str, device: torch.device) -> None:
        try:
            self._model = torch.jit.load(source, map_location=device).eval()
            blank = torch.zeros(1, 3, 299, 299, dtype=torch.uint8, device=device)
            shape = tuple(self._model(blank, return_features=True).shape)
            if shape != (1, self.num_features):
                raise ValueError(f"its features have shape {shape}")
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"inception={source} cannot be loaded ({str(error).strip().splitlines()[0]}): give "
                "the TorchScript file inception-2015-12-05.pt of StyleGAN's metrics, from "
                "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
                "inception-2015-12-05.pt; other weights give no FID"
            ) from error
        self._device = device

    @torch.no_grad()
    def features(self, images: Images) -> Float[Tensor, "b d"]:
        """Return the features of images, those of one size in one batch."""
        sizes: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            sizes.setdefault(image.shape, []).append(index)
        features = torch.empty(len(images), self.num_features)
        for indices in sizes.values():
            batch = np.stack([images[i] for i in indices]).transpose(0, 3, 1, 2)
            pixels = torch.from_numpy(batch.copy()).to(self._device)
            features[indices] = self._model(pixels, return_features=True).float().cpu()
        return features


FeatureNetwork = ClipNetwork | Dinov2Network | InceptionNetwork


def fit_image(
    image: UInt8[ndarray, "h w 3"], side_px: int, *, crop: bool
) -> UInt8[ndarray, "s s 3"]:
    """Return the central square of an image, or all of it, at another size.

    Args:
        image: sRGB.
        side_px: of the result; an image of this size is returned as it is.
        crop: whether to cut to the central square first; else the sides are scaled apart.
    """
    picture = Image.fromarray(image)
    if crop:
        short = min(picture.size)
        left, top = (picture.width - short) // 2, (picture.height - short) // 2
        picture = picture.crop((left, top, left + short, top + short))
    return np.asarray(picture.resize((side_px, side_px), Image.Resampling.BICUBIC))


def _pixels(
    images: Images,
    side_px: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    *,
    crop: bool,
) -> Float32[Tensor, "b 3 s s"]:
    fitted = np.stack([fit_image(image, side_px, crop=crop) for image in images])
    scaled = (fitted / 255.0 - np.array(mean)) / np.array(std)
    return torch.from_numpy(scaled.astype(np.float32)).permute(0, 3, 1, 2)


def _pretrained(part: Any, key: str, source: str) -> Any:
    """Return `part.from_pretrained(source)`; a path that is no folder never asks the hub."""
    looks_like_path = source.startswith((".", "~", os.sep)) or source.count("/") > 1
    if looks_like_path and not Path(source).is_dir():
        raise UserError(f"{key}={source} is no folder: give a folder or a hub id")
    try:
        if (config_class := getattr(part, "config_class", None)) is not None:  # no tokenizer
            found = PretrainedConfig.get_config_dict(source)[0].get("model_type")
            if found != config_class.model_type:  # it would load, with random weights
                raise ValueError(f"it is a {found}, not a {config_class.model_type}")
        return part.from_pretrained(source)
    except (OSError, ValueError) as error:  # what transformers raises; hub errors are OSErrors
        raise UserError(
            f"{key}={source} cannot be loaded ({str(error).strip().splitlines()[0]}): give a "
            "folder that `save_pretrained` wrote, or a hub id, whose weights are fetched once"
        ) from error
