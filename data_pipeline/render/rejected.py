"""A small picture of an asset that failed after it was rendered, for the page of `stats`."""

import contextlib
import os
from pathlib import Path

import cv2
import numpy as np

THUMBNAIL_PX = 96
"""Height of a view in a picture."""


def keep_picture(folder: Path, picture: Path, scratch: Path) -> None:
    """Keep what was rendered of a failed asset, if there is anything.

    Args:
        folder: what its worker has left, perhaps with an image of the rgb views.
        picture: where to keep it, as JPEG.
        scratch: a folder of this process alone, on the file system of `picture`.
    """
    for path in sorted(folder.glob("rgb.*")):
        jpeg = strip_jpeg(path.read_bytes())
        if jpeg is None:
            continue
        temporary = scratch / picture.name
        temporary.write_bytes(jpeg)
        picture.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, picture)
        return


def strip_jpeg(image: bytes) -> bytes | None:
    """Return views that are stacked top to bottom as a small JPEG of them side by side.

    Args:
        image: of square views, in any format that OpenCV reads.

    Returns:
        None if it is no such image.
    """
    strip = None
    with contextlib.suppress(cv2.error):
        strip = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_UNCHANGED)
    if strip is None or strip.shape[0] % strip.shape[1]:
        return None
    if strip.ndim == 3 and strip.shape[2] == 4:
        alpha = strip[..., 3:].astype(np.float32) / 255.0
        strip = (strip[..., :3] * alpha + 255.0 * (1.0 - alpha)).round().astype(np.uint8)
    views = strip.reshape(-1, strip.shape[1], *strip.shape[1:])
    small = [
        cv2.resize(view, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA)
        for view in views
    ]
    ok, jpeg = cv2.imencode(".jpg", np.concatenate(small, axis=1), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return jpeg.tobytes() if ok else None
