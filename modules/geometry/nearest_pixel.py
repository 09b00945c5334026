"""Filling images from their nearest known pixels."""

from jaxtyping import Bool, Int
from numpy import ndarray
from scipy import ndimage


def nearest_pixel(known: Bool[ndarray, "h w"]) -> tuple[Int[ndarray, "h w"], Int[ndarray, "h w"]]:
    """Return row and column of the known pixel nearest to each pixel; of itself where known.

    Args:
        known: pixels that hold a value; at least one.
    """
    row, column = ndimage.distance_transform_edt(
        ~known, return_distances=False, return_indices=True
    )
    return row, column
