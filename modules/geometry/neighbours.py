"""What many points ask, in chunks; the nearest of points, by a k-d tree or, on CUDA, by cells."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.spatial import cKDTree
from torch import Tensor

from modules.geometry.threads import by_threads, num_threads

MOST_PAIRS = 2**22
"""Distances that a grid of cells measures at a time; a third of a gigabyte."""

LEAST_CHUNK, MOST_CHUNK = 2**11, 2**14
"""Points to a thread at a time: fewer are not worth a thread, more leave a core's cache."""

CUDA_CHUNK = 2**18
"""Points at a time: more would fill a small GPU's memory."""


def in_chunks(
    function: Callable[..., tuple[Tensor, ...]],
    device: torch.device,
    *arrays: Float[ndarray, "p ..."],
) -> tuple[ndarray, ...]:
    """Return what a function on a device makes of arrays, asked for some of their rows at a time.

    In double precision, whatever the arrays have.

    Args:
        function: takes as many rows of each array and returns tensors with a row for each; it must
            be safe to call from several threads.
        device: where it works.
        arrays: as many rows each.
    """

    def on_device(rows: Float[ndarray, "r ..."]) -> Float[Tensor, "r ..."]:
        return torch.from_numpy(np.require(rows, np.float64, ["C", "W"])).to(device)

    def results(start: int) -> list[ndarray]:
        rows = (on_device(each[start : start + chunk]) for each in arrays)
        return [each.cpu().numpy() for each in function(*rows)]

    count, chunk = len(arrays[0]), CUDA_CHUNK
    if device.type == "cpu":
        chunk = min(max(-(-count // num_threads()), LEAST_CHUNK), MOST_CHUNK)
    starts = range(0, max(count, 1), chunk)
    found = by_threads(results, starts) if device.type == "cpu" else map(results, starts)
    return tuple(np.concatenate(each) for each in zip(*found, strict=True))


class PointIndex:
    """Finds the nearest of some points.

    Args:
        position: the points, on the device where they will be asked for; at least one.
    """

    def __init__(self, position: Float[Tensor, "n d"]) -> None:
        self.position = position
        self._cells: dict[float, CellIndex] = {}
        # On the CPU made here, by one thread: several may ask at once.
        self._tree = None if position.is_cuda else cKDTree(position.numpy())

    def query(
        self, points: Float[Tensor, "p d"], count: int, reach: float = float("inf")
    ) -> tuple[Float[Tensor, "p k"], Int[Tensor, "p k"]]:
        """Return distances and indices of the nearest points, the nearest first.

        Args:
            points: where; on the device of the points.
            count: how many.
            reach: only points nearer than this are found; on CUDA points in three dimensions
                should be sought within a reach, since others are sought on the CPU.

        Returns:
            Infinity and 0 where there are fewer.
        """
        if points.is_cuda and reach < float("inf") and points.shape[1] == 3:
            if reach not in self._cells:
                self._cells[reach] = CellIndex(self.position, reach)
            return self._cells[reach].query(points, count)
        if self._tree is None:
            self._tree = cKDTree(self.position.cpu().numpy())
        tree = self._tree
        # As a list, k gives a row of neighbours even where it is 1.
        distance, index = tree.query(
            points.cpu().numpy(),
            k=list(range(1, count + 1)),
            distance_upper_bound=reach,
            workers=num_threads(),
        )
        index[index == len(self.position)] = 0
        found = torch.from_numpy(distance), torch.from_numpy(index)
        return found[0].to(points.device), found[1].to(points.device)


class CellIndex:
    """Finds the nearest of some points within a fixed reach: those in the cells around a point.

    Args:
        position: the points; at least one.
        reach: side of the cells.
    """

    def __init__(self, position: Float[Tensor, "n 3"], reach: float) -> None:
        self._reach, self._low = reach, position.amin(dim=0)
        # With empty cells on all sides, so that the cells around a cell have numbers of their own.
        self._size = ((position.amax(dim=0) - self._low) / reach).long() + 5
        self._key, self._order = self._number(self._place(position)).sort()
        self._position = position[self._order]

    def query(
        self, points: Float[Tensor, "p 3"], count: int
    ) -> tuple[Float[Tensor, "p k"], Int[Tensor, "p k"]]:
        """Return what `PointIndex.query` does."""
        distance = points.new_full((len(points), count), float("inf"))
        index = torch.zeros_like(distance, dtype=torch.long)
        begin, length = self._runs(points)
        ends = length.cumsum(dim=1)
        order = ends[:, -1].argsort(descending=True)
        totals = ends[order, -1].tolist()
        first = 0
        while first < len(order) and totals[first]:
            chosen = order[first : first + max(MOST_PAIRS // totals[first], 1)]
            first += len(chosen)
            number = torch.arange(max(totals[first - len(chosen)], count), device=points.device)
            number = number.expand(len(chosen), -1).contiguous()
            run = torch.searchsorted(ends[chosen], number, right=True)
            missing = run == length.shape[1]
            run.clamp_(max=length.shape[1] - 1)
            # What comes before a run is the end of the one before it.
            skipped = (ends[chosen] - length[chosen]).gather(1, run)
            candidate = begin[chosen].gather(1, run) + number - skipped
            candidate[missing] = 0
            apart = (self._position[candidate] - points[chosen, None]).norm(dim=-1)
            apart[missing | (apart >= self._reach)] = float("inf")
            nearest, at = apart.topk(count, dim=1, largest=False)
            found = self._order[candidate.gather(1, at)]
            distance[chosen], index[chosen] = nearest, found.where(nearest.isfinite(), 0)
        return distance, index

    def _place(self, points: Float[Tensor, "p 3"]) -> Int[Tensor, "p 3"]:
        """Return the cells that points lie in; the outermost of them hold nothing."""
        place = ((points - self._low) / self._reach).floor().clamp(-1e9, 1e9).long() + 2
        return torch.minimum(place.clamp_min(1), self._size - 2)

    def _number(self, place: Int[Tensor, "*n 3"]) -> Int[Tensor, "*n"]:
        """Return one number for every cell; neighbours along the last axis follow each other."""
        x, y, z = place.unbind(dim=-1)
        return (x * self._size[1] + y) * self._size[2] + z

    def _runs(self, points: Float[Tensor, "p 3"]) -> tuple[Int[Tensor, "p 9"], Int[Tensor, "p 9"]]:
        """Return first and number of the points in each of nine rows of three cells."""
        step = torch.arange(-1, 2, device=points.device)
        around = torch.cartesian_prod(step, step, step[:1])
        first = self._number(self._place(points)[:, None] + around)
        begin = torch.searchsorted(self._key, first)
        return begin, torch.searchsorted(self._key, first + 2, right=True) - begin
