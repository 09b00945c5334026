"""Which pixel centres triangles cover, row by row, without a gap or an overlap at shared edges."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray


@dataclass(frozen=True)
class Spans:
    """Runs of pixels in one row, each inside one triangle.

    Args:
        triangle: index of the triangle.
        row: of the run; the centre of row 0 lies at y = .5.
        start, end: first pixel, and the one after the last; its centre lies at x = start + .5.
        counter_clockwise: whether the triangle runs so, x to the right and y upwards.
    """

    triangle: Int[ndarray, " s"]
    row: Int[ndarray, " s"]
    start: Int[ndarray, " s"]
    end: Int[ndarray, " s"]
    counter_clockwise: Bool[ndarray, " s"]


def triangle_spans(corners: Float[ndarray, "t 3 2"], side_px: int) -> Spans:
    """Return the runs of pixel centres that triangles cover in a square image.

    An edge is cut by a row at the same place for both of its triangles, whichever way they run, so
    a centre belongs to exactly one triangle of a surface without folds, and over a closed surface
    the counter-clockwise and the clockwise triangles of every pixel are equal in number.

    Args:
        corners: in pixels.
        side_px: side of the image; what lies outside is left out.
    """
    low, high = corners[..., 1].min(axis=1), corners[..., 1].max(axis=1)
    first = np.clip(np.floor(low - 0.5), 0, side_px).astype(np.int64)
    last = np.clip(np.ceil(high - 0.5) + 1.0, 0, side_px).astype(np.int64)
    num_rows = np.maximum(last - first, 0)
    triangle = np.repeat(np.arange(len(corners)), num_rows)
    row = np.arange(len(triangle)) + np.repeat(first - np.cumsum(num_rows) + num_rows, num_rows)
    left, right = np.full(len(row), np.inf), np.full(len(row), -np.inf)
    falls_left = np.zeros(len(row), dtype=bool)
    for corner in range(3):
        a, b = corners[:, corner], corners[:, (corner + 1) % 3]
        falls = a[:, 1] > b[:, 1]
        lower, upper = np.where(falls[:, None], b, a), np.where(falls[:, None], a, b)
        rise = upper[:, 1] - lower[:, 1]
        slope = (upper[:, 0] - lower[:, 0]) / np.where(rise > 0.0, rise, 1.0)
        y = row + 0.5
        cut = (lower[triangle, 1] <= y) & (y < upper[triangle, 1])
        x = lower[triangle, 0] + (y - lower[triangle, 1]) * slope[triangle]
        falls_left = np.where(cut & (x < left), falls[triangle], falls_left)
        left, right = (
            np.where(cut, np.minimum(left, x), left),
            np.where(cut, np.maximum(right, x), right),
        )
    start = np.ceil(np.clip(left - 0.5, 0, side_px)).astype(np.int64)
    end = np.ceil(np.clip(right - 0.5, 0, side_px)).astype(np.int64)
    kept = end > start
    return Spans(triangle[kept], row[kept], start[kept], end[kept], falls_left[kept])
