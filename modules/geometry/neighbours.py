"""Nearest points, sought on as many threads as torch may use."""

from typing import Any

import torch
from jaxtyping import Float
from numpy import ndarray
from scipy.spatial import cKDTree


def query(tree: cKDTree, points: Float[ndarray, "p d"], **options: Any) -> tuple[ndarray, ndarray]:
    """Return distances and indices of neighbours; `options` are those of the tree's own query."""
    return tree.query(points, workers=torch.get_num_threads(), **options)
