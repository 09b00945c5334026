"""Nearest points, and all else asked of many points: on as many threads as torch may use."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy.spatial import cKDTree

LEAST_CHUNK, MOST_CHUNK = 2048, 16_384
"""Points to a thread at a time: fewer are not worth a thread, more leave a core's cache."""

_of_pool = threading.local()


def query(tree: cKDTree, points: Float[ndarray, "p d"], **options: Any) -> tuple[ndarray, ndarray]:
    """Return distances and indices of neighbours; `options` are those of the tree's own query."""
    alone = getattr(_of_pool, "member", False)
    return tree.query(points, workers=1 if alone else torch.get_num_threads(), **options)


def in_chunks(
    function: Callable[..., tuple[ndarray, ...]], *arrays: Float[ndarray, "p ..."]
) -> tuple[ndarray, ...]:
    """Return what a function makes of arrays, asked for some of their rows at a time.

    Args:
        function: takes as many rows of each array and returns arrays with a row for each; it must
            be safe to call from several threads.
        arrays: as many rows each.
    """
    count, threads = len(arrays[0]), torch.get_num_threads()
    chunk = min(max(-(-count // threads), LEAST_CHUNK), MOST_CHUNK)
    chunks = [[each[i : i + chunk] for each in arrays] for i in range(0, max(count, 1), chunk)]
    if threads == 1 or len(chunks) == 1 or getattr(_of_pool, "member", False):
        results = [function(*chunk) for chunk in chunks]
    else:
        with ThreadPoolExecutor(threads, initializer=_join_pool) as pool:
            results = list(pool.map(lambda chunk: function(*chunk), chunks))
    return tuple(np.concatenate(each) for each in zip(*results, strict=True))


def _join_pool() -> None:
    """Mark a thread as one of several: what it calls takes no more."""
    _of_pool.member = True
