"""Signed distance to meshes that are not watertight, and how sure the sign is.

A point is outside when one of `NUM_RAYS` rays from it meets nothing, or when a flood fill from the
border of a fine voxel shell reaches it: face orientation plays no part. What bounds the outside on
one side is the skin of a solid; on both sides, a sheet, which gets a thickness; on neither, it is
hidden inside the solid and no part of the shape. Pure numpy, scipy and Embree: no Blender.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from numpy.typing import NDArray
from scipy import ndimage

NUM_RAYS = 208
RAY_BATCHES = (16, 48, 144)
"""Rays are cast in batches; what a batch decides is not cast again. They sum to `NUM_RAYS`."""

CELL = 1.0 / 128.0
"""Side of a cell of the shell, in world units."""

SHEET_HALF_THICKNESS = 0.75 * CELL
"""Sheets are thickened to 1.5 cells."""

MAX_EDGE = 0.05
"""Faces are cut to edges of at most this before each piece is told to be skin, sheet or hidden.

Where parts intersect, a piece of skin may reach this far into the solid: distances are then too
short there, on the inside only.
"""

SURE_ESCAPES = 0.1
"""Share of escaping rays from which on `outside` is certain."""

LEAKY_ROOM = 0.2
"""Share of a closed room's points that see out, from which on nothing in it is surely inside."""

SIDE_OFFSET = 1e-4
"""How far beside a face its two sides are examined, in world units."""

SIDE_RAYS = RAY_BATCHES[0] + RAY_BATCHES[1]
"""Rays from each side of a face: fewer than a point gets, as its neighbours are asked as well."""

SIDE_RAY_BUDGET = 40_000_000
"""Rays spent at most on the sides of faces: meshes of very many faces get fewer rays per side."""

BuildDistance = Callable[
    [NDArray[np.float64]], Callable[[NDArray[np.float64]], NDArray[np.float64]]
]
"""Takes triangles `(f, 3, 3)`, returns a function of points `(k, 3)`: unsigned distances `(k,)`."""


@dataclass(frozen=True)
class SignedDistance:
    """Distances of points.

    Args:
        distance: `(k,)` float32, world units, positive outside.
        confidence: `(k,)` float32 in [0, 1], how sure the sign is.
    """

    distance: NDArray[np.float32]
    confidence: NDArray[np.float32]


class Solid:
    """The shape that a triangle soup means.

    Args:
        triangles: `(f, 3, 3)` float64, world, inside [-0.5, 0.5]^3; any orientation.
        build_distance: exact unsigned distance to triangles.
    """

    def __init__(self, triangles: NDArray[np.float64], build_distance: BuildDistance):
        pieces = cut_long_edges(triangles, MAX_EDGE)
        self._scene = EmbreeScene(robust=True)
        TriangleMesh(self._scene, np.ascontiguousarray(triangles, dtype=np.float32))
        self._shell = FloodedShell(pieces)
        front, back = self._outside_sides(pieces)
        skin, sheet = pieces[front ^ back], pieces[front & back]
        if not len(skin) and not len(sheet):
            sheet = pieces  # faces that lie upon each other shut both sides in
        self.skin_share = len(skin) / len(pieces)
        self.sheet_share = len(sheet) / len(pieces)
        self._to_skin = build_distance(skin) if len(skin) else None
        self._to_sheet = build_distance(sheet) if len(sheet) else None

    def signed_distance(self, points: NDArray[np.float64]) -> SignedDistance:
        """Return signed distances of points `(k, 3)`, anywhere in space.

        The confidence of a point inside is judged by what the other points of its room see: ask for
        many at once.
        """
        points = np.asarray(points, dtype=np.float64)
        sure = self._shell.reached_by_wide_ways(points)  # rays would tell nothing new there
        escapes = np.zeros(len(points))
        escapes[~sure] = self._escaping_share(points[~sure], NUM_RAYS, SURE_ESCAPES)
        reached, free = self._shell.reached(points), self._shell.free(points)
        outside = reached | (escapes > 0.0)
        confidence = np.where(outside, np.minimum(escapes / SURE_ESCAPES, 1.0), 1.0)
        # Reached, with hardly any sky in sight: the bottom of a cave or, by a narrow way, a leak.
        confidence = np.where(reached, np.maximum(confidence, 0.5), confidence)
        confidence = np.where(sure, 1.0, confidence)
        # A ray found a way out that is too narrow for the flood: trust neither.
        confidence = np.where(outside & ~reached & free, np.minimum(confidence, 0.5), confidence)
        confidence = np.where(outside, confidence, 1.0 - self._leak_share(points, escapes > 0.0))
        distance = np.full(len(points), np.inf)
        if self._to_skin is not None:
            distance = np.where(outside, 1.0, -1.0) * self._to_skin(points)
        if self._to_sheet is not None:
            distance = np.minimum(distance, self._to_sheet(points) - SHEET_HALF_THICKNESS)
        return SignedDistance(distance.astype(np.float32), confidence.astype(np.float32))

    def _leak_share(
        self, points: NDArray[np.float64], escaped: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Return how leaky the room around each point is: 0 tight, 1 when 1 point in 5 sees out."""
        room = self._shell.room(points)
        share = np.bincount(room, escaped) / np.maximum(np.bincount(room), 1)
        return np.where(room == 0, 0.0, np.minimum(share[room] / LEAKY_ROOM, 1.0))

    def _outside_sides(self, pieces: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
        """Return whether the front and the back of each triangle are outside, `(f,)` bool each."""
        normal = np.cross(pieces[:, 1] - pieces[:, 0], pieces[:, 2] - pieces[:, 0])
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-30)
        centre = pieces.mean(axis=1)
        points = np.concatenate([centre + SIDE_OFFSET * normal, centre - SIDE_OFFSET * normal])
        num_rays = int(np.clip(SIDE_RAY_BUDGET // len(points), RAY_BATCHES[0], SIDE_RAYS))
        outside = self._shell.reached(points)
        rest = ~outside
        outside[rest] = self._escaping_share(points[rest], num_rays, 0.0) > 0.0
        return outside[: len(pieces)], outside[len(pieces) :]

    def _escaping_share(
        self, points: NDArray[np.float64], num_rays: int, sure: float
    ) -> NDArray[np.float64]:
        """Return the share of rays that meet nothing; above `sure`, no more rays are cast."""
        directions = sphere_directions(num_rays)
        escaped, cast = np.zeros(len(points)), np.zeros(len(points))
        active = np.arange(len(points))
        start = 0
        for batch in RAY_BATCHES:
            rays = directions[start : start + batch]
            start += batch
            if not len(active) or not len(rays):
                break
            for chunk in np.array_split(active, len(active) * len(rays) // 2_000_000 + 1):
                escaped[chunk] += self._count_escapes(points[chunk], rays)
            cast[active] += len(rays)
            active = active[escaped[active] <= sure * cast[active]]
        return np.divide(escaped, cast, out=np.zeros_like(escaped), where=cast > 0)

    def _count_escapes(
        self, points: NDArray[np.float64], rays: NDArray[np.float32]
    ) -> NDArray[np.int64]:
        origins = np.repeat(points.astype(np.float32), len(rays), axis=0)
        blocked = self._scene.run(origins, np.tile(rays, (len(points), 1)), query="OCCLUDED")
        return (blocked.reshape(len(points), len(rays)) != 0).sum(axis=1)


class FloodedShell:
    """Voxels of a surface, and those that a flood fill from the border reaches.

    Args:
        pieces: `(f, 3, 3)`, triangles with edges of at most `MAX_EDGE`.
    """

    def __init__(self, pieces: NDArray[np.float64]):
        # Four cells of margin: even widened walls at the cube's faces leave a way around them.
        self._low = -0.5 - 4.0 * CELL
        side = round(1.0 / CELL) + 8
        wall = np.zeros((side, side, side), dtype=bool)
        for points in _lattices(pieces, CELL / 2.0):
            wall[tuple(np.clip(self._index(points), 3, side - 4).T)] = True
        labels, _ = ndimage.label(~wall)
        # The wall keeps the flood out, but its cells hold samples of the surface only: the surface
        # itself also cuts corners of the cells beside them, and those decide nothing about a point.
        self._near = _dilate(wall)
        self._rooms = np.where(self._near, 0, labels)
        self._reached = self._rooms == labels[0, 0, 0]
        wide, _ = ndimage.label(~self._near)
        self._reached_widely = wide == wide[0, 0, 0]

    def _index(self, points: NDArray[np.float64]) -> NDArray[np.int64]:
        return np.floor((points - self._low) / CELL).astype(np.int64)

    def _look_up(self, points: NDArray[np.float64], grid: NDArray, beyond: bool | int) -> NDArray:
        index = self._index(points)
        within = ((index >= 0) & (index < len(grid))).all(axis=1)
        return np.where(within, grid[tuple(np.clip(index, 0, len(grid) - 1).T)], beyond)

    def reached(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return whether the flood reaches each point `(k, 3)`; False near the surface."""
        return self._look_up(points, self._reached, True)

    def reached_by_wide_ways(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return whether the flood reaches each point `(k, 3)` even through walls 3 cells thick."""
        return self._look_up(points, self._reached_widely, True)

    def room(self, points: NDArray[np.float64]) -> NDArray[np.integer]:
        """Return the number of the room, closed or not, around each point; 0 near the surface."""
        return self._look_up(points, self._rooms, 0)

    def free(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return whether each point `(k, 3)` is so far from the surface that the flood decides."""
        return ~self._look_up(points, self._near, False)


def _dilate(grid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the cells of `grid` and their 26 neighbours (scipy's own is 20 times slower)."""
    for axis in range(3):
        grid = np.swapaxes(grid, 0, axis)
        wider = grid.copy()
        wider[1:] |= grid[:-1]
        wider[:-1] |= grid[1:]
        grid = np.swapaxes(wider, 0, axis)
    return grid


def sphere_directions(count: int) -> NDArray[np.float32]:
    """Return directions `(count, 3)`, even over the sphere, every prefix roughly even as well."""
    # The R2 sequence, mapped with equal areas; oblique to every axis, so to most faces and edges.
    index = np.arange(count)
    height = 1.0 - 2.0 * ((index * 0.7548776662466927 + 0.37) % 1.0)
    angle = 2.0 * np.pi * ((index * 0.5698402909980532 + 0.19) % 1.0)
    radius = np.sqrt(1.0 - height**2)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), height], 1).astype(np.float32)


def cut_long_edges(triangles: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    """Bisect longest edges until none exceeds `limit`; returns `(f', 3, 3)`, f' >= f."""
    done: list[NDArray[np.float64]] = []
    rest = np.asarray(triangles, dtype=np.float64)
    while len(rest):
        edges = np.linalg.norm(
            rest - np.roll(rest, -1, axis=1), axis=2
        )  # edge i: corner i to i + 1
        long = edges.max(axis=1) > limit
        done.append(rest[~long])
        rest, longest = rest[long], edges[long].argmax(axis=1)
        rows = np.arange(len(rest))[:, None]
        a, b, c = np.swapaxes(rest[rows, (longest[:, None] + np.arange(3)) % 3], 0, 1)
        middle = (a + b) / 2.0
        rest = np.concatenate([np.stack([a, middle, c], 1), np.stack([middle, b, c], 1)])
    return np.concatenate(done)


def _lattices(pieces: NDArray[np.float64], spacing: float):
    """Yield points `(k, 3)` that cover the triangles with gaps of at most `spacing`."""
    edges = np.linalg.norm(pieces - np.roll(pieces, -1, axis=1), axis=2).max(axis=1)
    steps = np.maximum(np.ceil(edges / spacing), 1).astype(np.int64)
    for count in np.unique(steps):
        i, j = np.meshgrid(np.arange(count + 1), np.arange(count + 1), indexing="ij")
        i, j = i[i + j <= count], j[i + j <= count]
        weights = np.stack([count - i - j, i, j], axis=1) / count
        group = pieces[steps == count]
        for chunk in np.array_split(group, len(group) * len(weights) // 2_000_000 + 1):
            yield (weights @ chunk).reshape(-1, 3)
