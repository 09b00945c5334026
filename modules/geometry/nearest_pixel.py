"""Filling images from their nearest known pixels."""

import cv2
import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray


def nearest_pixel(known: Bool[ndarray, "h w"]) -> tuple[Int[ndarray, "h w"], Int[ndarray, "h w"]]:
    """Return row and column of the known pixel nearest to each pixel; of itself where known.

    Distances add up from pixel to pixel (Borgefors, 1986): of several pixels that are about as far,
    one is taken that is at most a twentieth farther than the nearest.

    Args:
        known: pixels that hold a value; at least one.
    """
    _, labels = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8),
        cv2.DIST_L2,
        cv2.DIST_MASK_5,
        labelType=cv2.DIST_LABEL_PIXEL,
    )
    label = labels.astype(np.int64)
    pixel = np.zeros(int(label.max()) + 1, dtype=np.int64)
    pixel[label[known]] = np.flatnonzero(known)
    row, column = np.divmod(pixel, known.shape[1])
    return row[label], column[label]
