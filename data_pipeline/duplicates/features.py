"""What a rendered asset looks like, in some hundred bytes: a perceptual hash of its views.

The hash of a view is made from its depth, not its colours: 64 bits, one for each of the 8 x 8
lowest frequencies of a cosine transform of the depth at 32 px, set where the coefficient lies above
their median. Six views make 384 bits.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8, UInt64
from numpy import ndarray

from data_pipeline.codec import decode_views
from data_pipeline.contract import UserError, layout_cameras

MAX_VIEWS = 6

TRANSFORM_PX, FREQUENCIES, THUMBNAIL_PX = 32, 8, 8

DEPTH_RANGE = 1.8
"""The unit cube's diagonal and a little more: depth is stored as 8 bits of it."""

DEAD_BAND = 2e-3
"""Above the median, relative to the largest coefficient: less is noise of symmetric views."""


@dataclass(frozen=True, slots=True)
class Features:
    """What is compared.

    Args:
        sha256: of the asset's file.
        box: extent of the visible surface along x, y, z, world units.
        bits: the hash of each view.
        depth: thumbnails of depth, 255 is `DEPTH_RANGE`, 0 is background.
        colour: thumbnails of rgb over white.
    """

    sha256: str
    box: Float32[ndarray, "3"]
    bits: UInt64[ndarray, " v"]
    depth: UInt8[ndarray, "v 8 8"]
    colour: UInt8[ndarray, "v 8 8 3"]


def read_features(members: Mapping[str, bytes]) -> Features:
    """Return the features of a sample.

    Args:
        members: content by name, as `Staging.read` gives them.

    Raises:
        UserError: a member is missing or damaged.
    """
    try:
        meta = json.loads(members["meta.json"])
        cameras = layout_cameras(meta)[:MAX_VIEWS]
        rgb, coord, hit = (
            decode_views(members[f"{name}.png"], len(meta["cameras"]))[: len(cameras)]
            for name in ("rgb", "coord", "hit")
        )
        sha256 = str(meta["source"]["sha256"])
    except (ValueError, KeyError, TypeError, cv2.error) as error:
        raise UserError(f"no whole sample ({type(error).__name__}): render it again") from error
    seen = hit > 0
    position = coord.astype(np.float32) / 65535.0 - 0.5
    forward = np.array([camera.matrix[:3, 2] for camera in cameras])
    depth = np.einsum("vhwc,vc->vhw", position, forward.astype(np.float32)) + DEPTH_RANGE / 2
    return Features(
        sha256=sha256,
        box=np.ptp(position[seen], axis=0) if seen.any() else np.zeros(3, np.float32),
        bits=np.array([view_hash(view) for view in np.where(seen, depth, 0.0)], dtype=np.uint64),
        depth=_thumbnails(np.where(seen, depth, 0.0) / DEPTH_RANGE),
        colour=_thumbnails(_over_white(rgb)),
    )


def view_hash(image: Float[ndarray, "h w"]) -> np.uint64:
    """Return the 64-bit hash of one image."""
    side = (TRANSFORM_PX, TRANSFORM_PX)
    small = cv2.resize(image.astype(np.float32), side, interpolation=cv2.INTER_AREA)
    lowest = cv2.dct(small)[:FREQUENCIES, :FREQUENCIES].ravel()
    margin = DEAD_BAND * float(np.abs(lowest).max())
    return pack_bits(lowest > np.median(lowest) + margin)


def pack_bits(bits: Bool[ndarray, "64"]) -> np.uint64:
    """Return 64 flags as one number, the first one lowest."""
    return np.packbits(bits, bitorder="little").view(np.uint64)[0]


def _over_white(rgb: UInt8[ndarray, "v h w 4"]) -> Float[ndarray, "v h w 3"]:
    alpha = rgb[..., 3:].astype(np.float32) / 255.0
    return rgb[..., :3] / 255.0 * alpha + 1.0 - alpha


def _thumbnails(views: Float[ndarray, "v h w *c"]) -> UInt8[ndarray, "v 8 8 *c"]:
    side = (THUMBNAIL_PX, THUMBNAIL_PX)
    small = [cv2.resize(view, side, interpolation=cv2.INTER_AREA) for view in views]
    return np.rint(np.clip(np.stack(small), 0.0, 1.0) * 255.0).astype(np.uint8)
