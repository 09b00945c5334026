"""Reference images from files: whatever their size and pose, they become images like the views."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from data_pipeline.contract import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Of the files that are taken from a folder; a file that is named itself may have any."""

OPAQUE = 128
"""Alpha from which a cut-out's pixel is the object's; tools that cut out leave faint haze."""

FRAME = 1.1
"""Side of a cut-out's square over its longest side: the `ortho_scale` of the training views."""


def reference_files(source: Path) -> list[Path]:
    """Return the file itself, or the image files of a folder in the order of their names.

    Raises:
        UserError: there is none.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f"image={source}: there is no such file; give an image or a folder of them")
    files = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"image={source} holds no image: give a folder with {', '.join(SUFFIXES)}")
    return files


def read_references(source: Path) -> list[Image.Image]:
    """Return the images of `reference_files`, upright, as RGBA.

    Raises:
        UserError: there is none, or one is no image of 8 bits a channel, or shows nothing.
    """
    return [_read(path) for path in reference_files(source)]


def images_digest(source: Path) -> str:
    """Return the SHA-256 of the files of `reference_files`, one behind the other."""
    digest = hashlib.sha256()
    for path in reference_files(source):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def fit_reference(image: Image.Image, side_px: int) -> Float[Tensor, "3 side side"]:
    """Return an image as a square in [-1, 1], on white, its aspect kept.

    Of a cut-out (an image with transparency) what is at least half opaque is centred in a square
    1.1 times its longest side, as the training views frame their assets; where nothing is, what
    shows at all. Any other image is kept whole, and padded with white to a square. The square is
    resized by an antialiased bicubic filter.

    Args:
        image: RGBA.
        side_px: of the views.
    """
    alpha = image.getchannel("A")
    cut_out = any(alpha.histogram()[:255])
    box = alpha.point([255 * (a >= OPAQUE) for a in range(256)]).getbbox() or alpha.getbbox()
    left, top, right, lower = box if cut_out and box else (0, 0, *image.size)
    side = round(max(right - left, lower - top) * (FRAME if cut_out else 1.0))
    left, top = left - (side - right + left) // 2, top - (side - lower + top) // 2
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(image.crop((left, top, left + side, top + side)))
    fitted = square.convert("RGB").resize((side_px, side_px), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(fitted, np.float32))
    return (pixels / 127.5 - 1.0).permute(2, 0, 1)


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"it has more than 8 bits a channel (mode {image.mode})")
            upright = ImageOps.exif_transpose(image).convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"image={path} is no readable image ({error}): give a PNG, JPEG or WebP of 8 bits a "
            "channel"
        ) from error
    if upright.getchannel("A").getbbox() is None:
        raise UserError(f"image={path} is wholly transparent: give one that shows what to make")
    return upright
