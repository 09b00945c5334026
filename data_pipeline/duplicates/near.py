"""Pairs of assets that look alike, without comparing all pairs.

Assets are put into buckets: a cell of the space of boxes, and 16 of the hash's bits; two that share
a bucket are compared. A pair whose hashes differ in fewer bits than there are bands (24 for six
views) shares one for certain; at the limit of `Limits.shape_bits` random differences would miss one
pair in a hundred, and real ones gather in few bands. Time and memory grow with the number of assets
times the size of a bucket: equal hashes are joined first, and an overfull bucket is compared within
a window of its sorted hashes alone.
"""

import logging
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int, UInt8, UInt64
from numpy import ndarray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

log = logging.getLogger(__name__)

CELL = 0.125
"""Side of a cell of boxes, world units."""

BAND_BITS = 16

FULL_BUCKET = 1000
"""Larger buckets are compared within a window."""

WINDOW = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How far two assets may differ (measured on 76 assets, docs/sources.md).

    Args:
        shape_bits: of the hash, for six views.
        box: largest difference of the extents, world units.
        depth: mean difference of the thumbnails, in [0, 1].
        copy_bits: of copies.
        copy_colour: mean difference of copies' colours, in [0, 1].
    """

    shape_bits: int = 40
    box: float = 0.06
    depth: float = 0.014
    copy_bits: int = 8
    copy_colour: float = 0.006


@dataclass(frozen=True, slots=True)
class FeatureTable:
    """Features of many assets, one row each.

    Args:
        box: extents.
        bits: hashes.
        depth: thumbnails.
        colour: thumbnails.
    """

    box: Float32[ndarray, "n 3"]
    bits: UInt64[ndarray, "n v"]
    depth: UInt8[ndarray, "n v 8 8"]
    colour: UInt8[ndarray, "n v 8 8 3"]


Pairs = Int[ndarray, "_ 2"]


def similar_pairs(table: FeatureTable, limits: Limits) -> tuple[Pairs, Pairs]:
    """Return the pairs of rows that have one shape, and those of them that are copies.

    Pairs follow from each other: rows of equal features are tied to one of them only.
    """
    first, equal = _representatives(table)
    pairs = _candidates(table, first, limits)
    pairs = np.concatenate([pairs, equal])
    distance = np.bitwise_count(table.bits[pairs[:, 0]] ^ table.bits[pairs[:, 1]]).sum(axis=1)
    scaled = distance * 6 / table.bits.shape[1]
    box = np.abs(table.box[pairs[:, 0]] - table.box[pairs[:, 1]]).max(axis=1)
    alike = (scaled <= limits.shape_bits) & (box <= limits.box)
    pairs, scaled = pairs[alike], scaled[alike]
    alike = _mean_difference(table.depth, pairs) <= limits.depth
    pairs, scaled = pairs[alike], scaled[alike]
    copies = (scaled <= limits.copy_bits) & (
        _mean_difference(table.colour, pairs) <= limits.copy_colour
    )
    return pairs, pairs[copies]


def components(pairs: Pairs, num_rows: int) -> Int[ndarray, " n"]:
    """Return for every row the number of the set of rows that pairs tie it to."""
    links = coo_array(
        (np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), (num_rows, num_rows)
    )
    return connected_components(links, directed=False)[1]


def _representatives(table: FeatureTable) -> tuple[Int[ndarray, " r"], Pairs]:
    """Return one row of each set with equal hash and look, and pairs that tie the others to it."""
    rows = len(table.bits)
    box = np.rint(table.box / 0.01).astype(np.uint64)
    look = table.colour.reshape(rows, -1).astype(np.float32).mean(axis=1) // 4
    keys = np.concatenate([table.bits, box, look.astype(np.uint64)[:, None]], axis=1)
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    tied = np.stack([first[inverse.ravel()], np.arange(rows)], axis=1)
    return first, tied[tied[:, 0] != tied[:, 1]]


def _candidates(table: FeatureTable, rows: Int[ndarray, " r"], limits: Limits) -> Pairs:
    """Return the pairs of rows that share a bucket."""
    owners, cells = _cells(table.box[rows], limits.box)
    found = np.empty((0, 2), np.int64)
    num_full = 0
    bands = table.bits[rows].view(np.uint16)  # r, 4 v
    for band in range(bands.shape[1]):
        key = cells * (1 << BAND_BITS) + bands[owners, band]
        order = np.lexsort((owners, key))  # representatives are sorted by their hashes
        key, members = key[order], rows[owners[order]]
        starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
        sizes = np.diff(np.r_[starts, len(key)])
        num_full += int((sizes > FULL_BUCKET).sum())
        # How many followers each member is compared with: all in its bucket, or those in a window.
        left = np.repeat(starts + sizes, sizes) - np.arange(len(key)) - 1
        left = np.minimum(left, np.repeat(np.where(sizes > FULL_BUCKET, WINDOW, sizes), sizes))
        place, step, near = np.flatnonzero(left > 0), 1, [found]
        while len(place):
            pairs = np.stack([members[place], members[place + step]], axis=1)
            near.append(_near_in_bits(pairs, table, limits))
            step += 1
            place = place[left[place] >= step]
        found = _once(np.concatenate(near))
    if num_full:
        log.warning("%d buckets hold over %d assets: pairs may be missed", num_full, FULL_BUCKET)
    return found


def _near_in_bits(pairs: Pairs, table: FeatureTable, limits: Limits) -> Pairs:
    """Return the pairs whose hashes are near enough, the smaller row first."""
    differing = np.bitwise_count(table.bits[pairs[:, 0]] ^ table.bits[pairs[:, 1]]).sum(axis=1)
    near = differing * 6 <= limits.shape_bits * table.bits.shape[1]
    return np.sort(pairs[near & (pairs[:, 0] != pairs[:, 1])], axis=1)


def _once(pairs: Pairs) -> Pairs:
    """Return every pair once. A pair is sorted as one number: numpy sorts rows ten times slower."""
    code = np.unique(pairs[:, 0] << 32 | pairs[:, 1])
    return np.stack([code >> 32, code & 0xFFFFFFFF], axis=1)


def _cells(
    box: Float32[ndarray, "r 3"], margin: float
) -> tuple[Int[ndarray, " k"], Int[ndarray, " k"]]:
    """Return (row, cell) of every cell that a box lies in or within half the margin of."""
    low = np.floor((box - margin / 2) / CELL).astype(np.int64)
    high = np.floor((box + margin / 2) / CELL).astype(np.int64)
    owners, cells = [], []
    for corner in range(8):
        take_high = np.array([corner >> axis & 1 for axis in range(3)], dtype=bool)
        wanted = (high[:, take_high] > low[:, take_high]).all(axis=1)  # else it is the low cell
        cell = np.where(take_high, high, low)[wanted] + 1
        owners.append(np.flatnonzero(wanted))
        cells.append((cell[:, 0] * 64 + cell[:, 1]) * 64 + cell[:, 2])
    return np.concatenate(owners), np.concatenate(cells)


def _mean_difference(thumbnails: UInt8[ndarray, "n v *s"], pairs: Pairs) -> Float32[ndarray, " _"]:
    """Return the mean difference of each pair's thumbnails, in [0, 1]."""
    out = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), 100_000):
        a, b = pairs[start : start + 100_000].T
        gap = np.abs(thumbnails[a].astype(np.int16) - thumbnails[b])
        out[start : start + 100_000] = gap.reshape(len(a), -1).mean(axis=1) / 255.0
    return out
