"""Which space that no view sees is empty: what makes the surface least, by a minimum cut.

Behind what the views saw there is a body, before it there is nothing; in between they cannot tell.
Counted as solid, the space between a lamp's foot and its shade becomes a pillar that nothing
supports. As what is seen of a body has depth, cells just behind it are solid; of the other unseen
cells, those are empty that a surface of least area cuts off from them. Where areas are equal, they
are solid.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, maximum_flow
from torch import Tensor
from torch.nn.functional import grid_sample

from modules.geometry.isosurface import GRID_HALF_SIDE

CELLS = 40
"""Along a side of the cube that grids fill: the cut costs hundredths of a second."""

SOLID_DEPTH = 1.3
"""In cells: so far behind what was seen, unseen space is solid."""

SURFACE, GIVEN_UP = 10, 7
"""Cost of a face between solid and empty cells, and of one where a view's free space ends: a cut
must be clearly smaller than what it replaces."""

FEWEST_CELLS = 27
"""Smaller pockets are the grid's invention."""


@dataclass(frozen=True)
class EmptySpace:
    """Unseen space that is empty.

    Args:
        distance: signed distance of cell centres to the border between empty and solid cells,
            positive in the empty; world units.
        chosen: cells that no view sees and that are empty, and those around them.
    """

    distance: Float[Tensor, "s s s"]
    chosen: Bool[Tensor, "s s s"]

    def depth(self, points: Float[Tensor, "p 3"]) -> Float[Tensor, " p"]:
        """Return how far points lie in empty space; -inf where this says nothing of them."""
        size = len(self.chosen)
        place = (points + GRID_HALF_SIDE) * (size / (2.0 * GRID_HALF_SIDE)) - 0.5
        x, y, z = place.round().long().clamp_(0, size - 1).unbind(dim=1)
        chosen = self.chosen[x, y, z].nonzero()[:, 0]
        depth = points.new_full((len(points),), -torch.inf)
        lattice = points[chosen].flip(1)[None, None, None] / GRID_HALF_SIDE
        depth[chosen] = grid_sample(
            self.distance[None, None], lattice, padding_mode="border", align_corners=False
        ).flatten()
        return depth


def find_empty_space(
    free_space: Callable[[ndarray], ndarray],
    nearest: Callable[[ndarray, float], ndarray],
    device: torch.device,
) -> EmptySpace | None:
    """Return the unseen space that is empty; None if there is none.

    Args:
        free_space: how far world points lie in space that a view looks through.
        nearest: distance of world points to the nearest point that was seen; infinite beyond the
            distance given.
        device: where it will be asked for.
    """
    size = 2.0 * GRID_HALF_SIDE / CELLS
    centre = (np.arange(CELLS) + 0.5) * size - GRID_HALF_SIDE
    centres = np.stack(np.meshgrid(centre, centre, centre, indexing="ij"), axis=-1).reshape(-1, 3)
    shape = (CELLS,) * 3
    free = free_space(centres).reshape(shape) > 0
    solid = ~free & np.isfinite(nearest(centres, SOLID_DEPTH * size)).reshape(shape)
    empty = _cut(free, solid)
    pocket, _ = ndimage.label(empty)
    empty &= (np.bincount(pocket.ravel()) >= FEWEST_CELLS)[pocket]
    if not empty.any():
        return None
    outside = empty | free
    distance = ndimage.distance_transform_edt(outside) - ndimage.distance_transform_edt(~outside)
    distance -= np.copysign(0.5, distance)
    chosen = ndimage.binary_dilation(empty)
    return EmptySpace(
        torch.from_numpy(distance * size).to(device), torch.from_numpy(chosen).to(device)
    )


def _cut(free: Bool[ndarray, "s s s"], solid: Bool[ndarray, "s s s"]) -> Bool[ndarray, "s s s"]:
    """Return the cells, neither free nor solid, on the free side of the least surface between."""
    unknown = ~free & ~solid
    count = int(unknown.sum())
    source, sink = count, count + 1
    number = np.where(solid, source, sink)
    number[unknown] = np.arange(count)
    rows, columns = [], []
    for axis in range(3):
        one, other = (
            np.moveaxis(number, axis, 0)[part].ravel() for part in (slice(-1), slice(1, None))
        )
        between = (np.minimum(one, other) < count) & (one != other)
        rows += [one[between], other[between]]
        columns += [other[between], one[between]]
    ends = np.concatenate(rows), np.concatenate(columns)
    given_up = (ends[0] == sink) | (ends[1] == sink)
    faces = np.where(given_up, GIVEN_UP, SURFACE).astype(np.int32)
    capacity = coo_matrix((faces, ends), (count + 2,) * 2).tocsr()
    left = capacity - maximum_flow(capacity, source, sink).flow
    left.eliminate_zeros()
    cut_off = breadth_first_order(left.T.tocsr(), sink, return_predecessors=False)
    empty = np.zeros(free.shape, dtype=bool)
    empty.ravel()[np.flatnonzero(unknown)[cut_off[cut_off < count]]] = True
    return empty
