"""Encoding of sample images: plain PNG, of a kind that decodes fast (decision 0005).

Runs beside Blender (numpy < 2) and in training alike.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data_pipeline.png import read_png, write_png


def encode_views(views: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """Encode views as one PNG, stacked top to bottom.

    Args:
        views: `(v, h, w)` grey, `(v, h, w, 3)` RGB or `(v, h, w, 4)` RGBA; uint8 or uint16.
    """
    return write_png(views[..., None] if views.ndim == 3 else views)


def decode_views(png: bytes, num_views: int) -> NDArray[Any]:
    """Decode `encode_views`, or any other PNG of stacked views.

    Returns:
        `(v, h, w)` or `(v, h, w, c)` in RGB(A) order, 8 or 16 bit as stored.

    Raises:
        ValueError: the bytes are no PNG, or do not hold `num_views` views.
    """
    views = read_png(png, num_views)
    if views is None:
        views = _read_with_opencv(png, num_views)
    return views[..., 0] if views.shape[-1] == 1 else views


def _read_with_opencv(png: bytes, num_views: int) -> NDArray[Any]:
    strip = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED) if png else None
    if strip is None:
        raise ValueError("not a readable PNG")
    if strip.shape[0] % num_views:
        raise ValueError(f"a strip of height {strip.shape[0]} does not hold {num_views} views")
    if strip.ndim == 3:
        strip = cv2.cvtColor(
            strip, cv2.COLOR_BGR2RGB if strip.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        )
    return strip.reshape(num_views, -1, strip.shape[1], strip.shape[2] if strip.ndim == 3 else 1)
