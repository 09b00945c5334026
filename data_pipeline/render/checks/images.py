"""What size an image declares, before anything decodes it."""

import io
import warnings
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from data_pipeline.render.checks.float_images import float_image_size
from data_pipeline.render.failures import AssetFailure
from data_pipeline.render.limits import MAX_ALL_PIXELS, MAX_IMAGE_PIXELS, MAX_IMAGE_SIDE_PX

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TGA", "GIF", "TIFF", "DDS", "PSD", "JPEG2000")
"""What Pillow may recognise; its other readers (EPS and the like) are not for hostile files."""

KTX = (b"\xabKTX 20\xbb\r\n\x1a\n", b"\xabKTX 11\xbb\r\n\x1a\n")

KTX_ADVICE = (
    "KTX textures are not read: rewrite the file, "
    "npx @gltf-transform/cli ktxdecompress in.glb out.glb"
)


class PixelBudget:
    """Adds up the pixels of an asset's images."""

    def __init__(self) -> None:
        self._num_pixels = 0
        self._seen: set[Path] = set()

    def add_file(self, path: Path) -> None:
        """Count an image file, once.

        Raises:
            AssetFailure: as `add`; `missing_texture` if it is not there.
        """
        real = path.resolve()
        if real in self._seen:
            return
        self._seen.add(real)
        try:
            with path.open("rb") as file:
                self.add(file, path.name)
        except FileNotFoundError as error:
            raise AssetFailure("missing_texture", f"the image {path.name!r} is missing") from error

    def add_bytes(self, content: bytes, name: str) -> None:
        """Count an image in memory.

        Raises:
            AssetFailure: as `add`.
        """
        self.add(io.BytesIO(content), name)

    def add(self, file: IO[bytes] | io.BytesIO, name: str) -> None:
        """Count an image by its header; what is no known image counts nothing.

        Raises:
            AssetFailure: `too_large`, `unsupported` (KTX), or `missing_texture` when it is empty.
        """
        head = file.read(16)
        file.seek(0)
        if not head:
            raise AssetFailure("missing_texture", f"the image {name!r} is empty (0 bytes)")
        if head[:12] in KTX:
            raise AssetFailure("unsupported", f"{name!r}: {KTX_ADVICE}")
        try:
            size = float_image_size(file)
        except ValueError as error:
            raise AssetFailure("unreadable", f"the image {name!r} is {error}") from error
        file.seek(0)
        size = size or _declared_size(file)
        if size is None:
            return
        width, height = size
        if max(size) > MAX_IMAGE_SIDE_PX or width * height > MAX_IMAGE_PIXELS:
            raise AssetFailure(
                "too_large",
                f"the image {name!r} declares {width} x {height} pixels; at most "
                f"{MAX_IMAGE_PIXELS} pixels and {MAX_IMAGE_SIDE_PX} a side are decoded",
            )
        self._num_pixels += width * height
        if self._num_pixels > MAX_ALL_PIXELS:
            raise AssetFailure("too_large", f"its images hold over {MAX_ALL_PIXELS} pixels")


def _declared_size(file: IO[bytes] | io.BytesIO) -> tuple[int, int] | None:
    """Return (width, height) without decoding; None for what is no known image."""
    kept, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # else it raises without the size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged metadata
            with Image.open(file, formats=FORMATS) as image:
                return image.size
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError):
        return None
    finally:
        Image.MAX_IMAGE_PIXELS = kept
