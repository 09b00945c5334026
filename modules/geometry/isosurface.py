"""The zero set of a signed distance as a watertight, manifold triangle mesh.

Marching cubes is manifold on a well-composed grid without zeros, `decimation` keeps a manifold mesh
one, and vertices stay apart when they are rounded to what files hold.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from modules.geometry.decimation import compact
from modules.geometry.marching_cubes import CORNERS, SQUARES, march
from modules.geometry.mesh import smooth_normals
from modules.geometry.sharp_features import add_features
from modules.geometry.threads import by_one_thread
from modules.geometry.well_composed import LEAST_SHARE, compose_well

DistanceFunction = Callable[[ndarray], ndarray]
"""Maps world points `(p, 3)` to signed distances `(p,)`, positive outside."""

GRID_HALF_SIDE = 0.54
"""Grids span [-GRID_HALF_SIDE, GRID_HALF_SIDE]^3: the unit cube and a margin."""

COARSEST = 24
"""The first grid has at least so many cells along a side, and less than twice as many."""

SQUARE_STEPS = [(-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1)]
"""From a cell to the one behind each of its faces, in the order of `SQUARES`."""

CHUNK = 262_144
"""Points that are evaluated at a time."""


def extract_isosurface(
    distance: DistanceFunction,
    cells: int,
    points: Float[ndarray, "n 3"],
    half_side: float = GRID_HALF_SIDE,
    sharp: bool = True,
    device: torch.device | str = "cpu",
) -> tuple[Float[ndarray, "v 3"], Int[ndarray, "f 3"]]:
    """Return the zero set of a distance function on a grid, evaluated near the surface only.

    Coarse to fine: cells that the surface can cross are split in eight until they have the size
    wanted, and what is found is followed to its end: time and memory grow with the surface. The
    border counts as outside, so the mesh is always closed.

    Args:
        distance: the field.
        cells: cells along a side of the grid.
        points: known surface points: features thinner than a coarse cell are found by them.
        half_side: the grid spans [-half_side, half_side]^3.
        sharp: find edges and corners inside of cells by the field's gradient; marching cubes alone
            cuts them off.
        device: where the grid is kept; best where the field is evaluated.
    """
    device = torch.device(device)

    def find() -> tuple[ndarray, ...]:
        return _crossed_cells(distance, cells, points, half_side, device)

    lowest, vertices, faces, cell = by_one_thread(find) if device.type == "cpu" else find()
    if not sharp:
        return vertices, faces
    return add_features(vertices, faces, cell, lowest, 2.0 * half_side / cells, distance)


def _crossed_cells(
    distance: DistanceFunction,
    cells: int,
    points: Float[ndarray, "n 3"],
    half_side: float,
    device: torch.device,
) -> tuple[ndarray, ...]:
    """Return the lowest corners of the cells that the surface crosses, and what `march` returns."""
    samples = _GridSamples(distance, cells, half_side, device)
    corners = CORNERS.to(device)
    stride = 2 ** max(int(np.log2(cells / COARSEST)), 0)
    line = torch.arange(0, cells, stride, device=device)
    corner = torch.cartesian_prod(line, line, line)
    place = torch.from_numpy(points).to(device)
    place = ((place + half_side) / samples.step).long().clamp(0, cells - 1)
    while stride > 1:
        index = samples.index(corner, stride)  # which adds to the values
        values = samples.values[index]
        low, high = values.aminmax(dim=1)
        active = (low < 0) & (high >= 0)
        active |= values.abs().amin(dim=1) < 0.5 * stride * samples.step
        active |= torch.isin(samples.key(corner), samples.key(place // stride * stride).unique())
        stride //= 2
        corner = (corner[active][:, None] + stride * corners).view(-1, 3)
        corner = corner[(corner < cells).all(dim=1)]
    crossed, place = samples.closed(corner)
    step = samples.step
    vertices, faces, cell = march(crossed, place, samples.values)
    lowest = place[crossed[:, 0]].double() * step - half_side
    found = lowest, vertices * step - half_side, faces, cell
    return tuple(each.cpu().numpy() for each in found)


def least_thickness(cells: int) -> float:
    """Return how thick a sheet must be, in world units, for a grid of so many cells not to tear it.

    Args:
        cells: along a side.
    """
    return 1.1 * 2.0 * GRID_HALF_SIDE / cells


class _GridSamples:
    """Values of a field on those vertices of a grid that were asked for. Lengths: fine cells.

    Args:
        distance: the field.
        cells: along a side of the grid.
        half_side: the grid spans [-half_side, half_side]^3.
    """

    def __init__(
        self, distance: DistanceFunction, cells: int, half_side: float, device: torch.device
    ) -> None:
        self.distance, self.cells, self.half_side = distance, cells, half_side
        self.step = 2.0 * half_side / cells
        self.values = torch.zeros(0, dtype=torch.float64, device=device)
        self._keys, self._order = torch.zeros((2, 0), dtype=torch.long, device=device)

    def key(self, place: Int[Tensor, "*n 3"]) -> Int[Tensor, "*n"]:
        """Return one number for every vertex or, by its lowest corner, every cell."""
        side = 2 * self.cells + 1
        return (place[..., 0] * side + place[..., 1]) * side + place[..., 2]

    def place(self, key: Int[Tensor, " n"]) -> Int[Tensor, "n 3"]:
        """Return the coordinates of numbered vertices."""
        side = 2 * self.cells + 1
        return torch.stack([key // side**2, key // side % side, key % side], dim=1)

    def index(self, corner: Int[Tensor, "c 3"], stride: int) -> Int[Tensor, "c 8"]:
        """Return where `values` holds the corners of cells, evaluating those that it lacks.

        Args:
            corner: the cells' lowest corners.
            stride: the cells' side.
        """
        keys = self.key(corner)[:, None] + self.key(stride * CORNERS.to(corner.device))
        wanted, inverse = keys.unique(return_inverse=True)
        at = torch.searchsorted(self._keys, wanted)
        known = torch.zeros_like(wanted, dtype=torch.bool)
        inner = at < len(self._keys)
        known[inner] = self._keys[at[inner]] == wanted[inner]
        missing = wanted[~known]
        found = [self._evaluate(self.place(some)) for some in missing.split(CHUNK)]
        new = len(self.values) + torch.arange(len(missing), device=corner.device)
        self.values = torch.cat([self.values, *found])
        self._keys, order = torch.cat([self._keys, missing]).sort()
        self._order = torch.cat([self._order, new])[order]
        return self._order[torch.searchsorted(self._keys, wanted)][inverse]

    def closed(self, corner: Int[Tensor, "c 3"]) -> tuple[Int[Tensor, "d 8"], Int[Tensor, "n 3"]]:
        """Return all fine cells that the surfaces in some cells cross, well-composed.

        Args:
            corner: the cells' lowest corners.

        Returns:
            Indices of their corners into `values`, and the coordinates of those vertices.
        """
        steps = torch.tensor(SQUARE_STEPS, device=corner.device)
        while True:
            crossed = self.index(corner, 1)
            compose_well(crossed, self.values, self.step)
            inside = (self.values < 0)[crossed]
            kept = inside.any(dim=1) & ~inside.all(dim=1)
            corner, crossed, inside = corner[kept], crossed[kept], inside[kept].T.contiguous()
            follow = [corner]
            for square, step in zip(SQUARES, steps, strict=True):
                first, *others = (inside[number] for number in square)
                goes_on = (first != others[0]) | (first != others[1]) | (first != others[2])
                follow.append(corner[goes_on] + step)
            found = self.place(self.key(torch.cat(follow)).unique())
            if len(found) == len(corner):
                place = torch.zeros((len(self.values), 3), dtype=torch.long, device=corner.device)
                place[self._order] = self.place(self._keys)
                return crossed, place
            corner = found

    def _evaluate(self, place: Int[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Return the field at vertices: outside on the border, and never 0."""
        points = place.double() * self.step - self.half_side
        values = torch.from_numpy(self.distance(points.cpu().numpy())).to(place.device)
        border = ((place <= 0) | (place >= self.cells)).any(dim=1)
        values = torch.where(border, values.clamp_min(0.5 * self.step), values)
        least = LEAST_SHARE * self.step
        return torch.where(values < 0, values.clamp_max(-least), values.clamp_min(least))


def drop_small_components(
    vertices: Float[ndarray, "v 3"], faces: Int[ndarray, "f 3"], share: float
) -> tuple[Float[ndarray, "u 3"], Int[ndarray, "g 3"]]:
    """Return the mesh without components of less area than `share` of the largest one's.

    Components that enclose negative volume (bubbles inside a solid) are dropped whatever their
    area: no view can have seen them.
    """
    if not len(faces):
        return vertices, faces
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = coo_matrix((np.ones(len(edges)), edges.T), shape=(len(vertices),) * 2)
    _, label = connected_components(graph, directed=False)
    face_label = label[faces[:, 0]]
    corners = vertices[faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.bincount(face_label, np.linalg.norm(cross, axis=1) / 2.0)
    volume = np.bincount(face_label, (corners[:, 0] * cross).sum(axis=1) / 6.0)
    kept = ((area >= share * area.max()) & (volume > 0))[face_label]
    return compact(vertices, faces[kept])


def round_apart(
    vertices: Float[ndarray, "v 3"], faces: Int[ndarray, "f 3"], shift: float = 1e-6
) -> Float[ndarray, "v 3"]:
    """Return vertices rounded to float32, as files hold them, no two of them at one place.

    Readers join vertices of equal position. Those that rounding would join, where two parts of a
    surface touch, move inwards along their normals by multiples of `shift`, in world units.
    """
    rounded = vertices.astype(np.float32).astype(np.float64)
    inwards = -smooth_normals(vertices, faces)
    for _ in range(32):
        _, index, count = np.unique(rounded, axis=0, return_inverse=True, return_counts=True)
        index = index.reshape(-1)
        order = np.argsort(index, kind="stable")
        rank = np.empty(len(index), dtype=np.int64)
        rank[order] = np.arange(len(index)) - (np.cumsum(count) - count)[index[order]]
        moved = rank > 0
        if not moved.any():
            return rounded
        away = rounded[moved] + shift * rank[moved, None] * inwards[moved]
        rounded[moved] = away.astype(np.float32)
    raise ValueError("vertices could not be told apart: the mesh has shrunk to a point")
