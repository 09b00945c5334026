"""PNG encoding of sample images. Runs beside Blender (numpy < 2) and in training alike."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

PNG_LEVEL = 6
"""zlib level; part of what makes equal inputs give equal bytes."""


def encode_views(views: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """Encode views as one PNG, stacked top to bottom.

    Args:
        views: `(v, h, w)` grey, `(v, h, w, 3)` RGB or `(v, h, w, 4)` RGBA; uint8 or uint16.
    """
    strip = views.reshape(views.shape[0] * views.shape[1], *views.shape[2:])
    if strip.ndim == 3:
        strip = cv2.cvtColor(
            strip, cv2.COLOR_RGB2BGR if strip.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
        )
    ok, png = cv2.imencode(".png", strip, [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL])
    if not ok:
        raise ValueError(f"OpenCV could not encode a {strip.dtype} image of shape {strip.shape}")
    return png.tobytes()


def decode_views(png: bytes, num_views: int) -> NDArray[Any]:
    """Decode `encode_views`: `(v, h, w)` or `(v, h, w, c)` in RGB(A) order, depth as stored.

    Raises:
        ValueError: the bytes are no PNG, or do not hold `num_views` views.
    """
    strip = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    if strip is None:
        raise ValueError("not a readable PNG")
    if strip.shape[0] % num_views:
        raise ValueError(f"a strip of height {strip.shape[0]} does not hold {num_views} views")
    if strip.ndim == 3:
        strip = cv2.cvtColor(
            strip, cv2.COLOR_BGR2RGB if strip.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        )
    return strip.reshape(num_views, strip.shape[0] // num_views, *strip.shape[1:])
