"""Closed triangle surfaces with normals and pattern coordinates, from which shapes are built.

Everything is Z up. One unit of `uv` is one period of a pattern, whose texture repeats.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float
from numpy import ndarray

CREASE_DEG = 40.0
"""Neighbouring faces that meet at a larger angle keep a hard edge between them."""

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Surface:
    """Triangles that share nothing; corners run counter-clockwise seen from outside.

    Args:
        position: world positions of the corners.
        normal: unit shading normals of the corners.
        uv: pattern coordinates of the corners, in periods.
    """

    position: Float[ndarray, "f 3 3"]
    normal: Float[ndarray, "f 3 3"]
    uv: Float[ndarray, "f 3 2"]

    def moved(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> "Surface":
        """Return the surface shifted."""
        return Surface(self.position + np.array([x, y, z]), self.normal, self.uv)

    def turned(self, axis: str, angle_deg: float) -> "Surface":
        """Return the surface turned about an axis of the origin; the pattern turns with it."""
        i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
        sine, cosine = math.sin(math.radians(angle_deg)), math.cos(math.radians(angle_deg))
        matrix = np.eye(3)
        matrix[i, i] = matrix[j, j] = cosine
        matrix[i, j], matrix[j, i] = -sine, sine
        return Surface(self.position @ matrix.T, self.normal @ matrix.T, self.uv)


def join(*surfaces: Surface) -> Surface:
    """Return several surfaces as one."""
    return Surface(
        np.concatenate([s.position for s in surfaces]),
        np.concatenate([s.normal for s in surfaces]),
        np.concatenate([s.uv for s in surfaces]),
    )


def box(size: Point, centre: Point, period: float = 1.0, taper: float = 1.0) -> Surface:
    """Return a box; `taper` scales its top face, 1 for an upright box."""
    half = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]) * np.array(size[:2]) / 2
    low = np.column_stack([half, np.full(4, -size[2] / 2)])
    high = np.column_stack([half * taper, np.full(4, size[2] / 2)])
    return loft(np.stack([low, high]) + np.array(centre), period)


def prism(
    outline: Sequence[tuple[float, float]], axis: str, low: float, high: float, period: float = 1.0
) -> Surface:
    """Return a convex outline drawn out along an axis.

    Args:
        outline: counter-clockwise corners: (x, z) seen from the front for axis `y`, (y, z) seen
            from +X for axis `x`, (x, y) seen from above for axis `z`.
        axis: `x`, `y` or `z`.
        low: where it starts on the axis.
        high: where it ends on the axis.
        period: period of the pattern, world units.
    """
    flat = np.asarray(outline, dtype=np.float64)
    if axis == "y":  # seen from the front, y grows away from the eye
        low, high = high, low
    columns = {"x": (1, 2), "y": (0, 2), "z": (0, 1)}[axis]
    sections = np.empty((2, len(flat), 3))
    for section, place in zip(sections, (low, high), strict=True):
        section[:, columns] = flat
        section[:, "xyz".index(axis)] = place
    return loft(sections, period)


def loft(sections: Float[ndarray, "r c 3"], period: float = 1.0) -> Surface:
    """Return the closed skin over cross-sections, both ends capped, patterned face by face.

    Each section runs counter-clockwise seen from the last one; the end caps must be star-shaped
    about the mean of their corners.
    """
    first, last = (
        np.broadcast_to(section.mean(axis=0), section.shape)[None]
        for section in (sections[0], sections[-1])
    )
    return _lattice(np.concatenate([first, sections, last]), None, period)


def revolve(
    profile: Sequence[tuple[float, float]],
    period: float = 1.0,
    segments: int = 24,
    depth: float = 1.0,
    centre: Point = (0.0, 0.0, 0.0),
) -> Surface:
    """Return the body that a profile sweeps about the Z axis.

    Args:
        profile: (radius, height) from the axis to the axis, the outside on its right-hand side: up
            the outer wall, inwards over the top.
        period: period of the pattern, world units.
        segments: faces around.
        depth: scale along Y, for oval bodies.
        centre: added to every point.
    """
    line = np.asarray(profile, dtype=np.float64)
    line, bands = _cut_into_bands(line, period)
    angle = 2.0 * math.pi * np.arange(segments) / segments
    points = np.empty((len(line), segments, 3))
    points[..., 0] = line[:, :1] * np.cos(angle) + centre[0]
    points[..., 1] = line[:, :1] * np.sin(angle) * depth + centre[1]
    points[..., 2] = line[:, 1:] + centre[2]
    around = math.pi * (1.0 + depth) / period
    return _lattice(points, _banded_uv(line[:, 0], bands, segments, around))


def ellipsoid(radii: Point, centre: Point, period: float = 1.0, segments: int = 24) -> Surface:
    """Return an ellipsoid by its three half axes."""
    steps = max(6, segments // 2)
    angle = math.pi * (np.arange(steps + 1) / steps - 0.5)
    radius, height = radii[0] * np.cos(angle), radii[2] * np.sin(angle)
    radius[[0, -1]] = 0.0
    profile = list(zip(radius.tolist(), height.tolist(), strict=True))
    return revolve(profile, period, segments, radii[1] / radii[0], centre)


def tube(
    path: Float[ndarray, "n 3"],
    radius: float | Sequence[float],
    across: Point,
    period: float = 1.0,
    segments: int = 10,
) -> Surface:
    """Return a round tube with flat ends along a path that lies in a plane.

    Args:
        path: centres of the rings.
        radius: of the tube, or of each ring.
        across: unit normal of the plane that holds the path.
        period: period of the pattern, world units.
        segments: faces around.
    """
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    first = np.broadcast_to(np.array(across), path.shape)
    second = np.cross(tangent, first)
    radii = np.broadcast_to(np.asarray(radius, dtype=np.float64), len(path))
    angle = 2.0 * math.pi * np.arange(segments) / segments
    ring = np.cos(angle)[:, None] * first[:, None] + np.sin(angle)[:, None] * second[:, None]
    points = path[:, None] + radii[:, None, None] * ring
    ends = [np.broadcast_to(path[i], (1, segments, 3)) for i in (0, -1)]
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    v = np.concatenate([[0.0, 0.0], np.cumsum(steps), [steps.sum()]]) / period
    bands = np.column_stack([v[:-1], v[1:], np.zeros(len(v) - 1)])
    rings = np.full(len(v), float(radii.max()))
    uv = _banded_uv(rings, bands, segments, 2.0 * math.pi / period)
    return _lattice(np.concatenate([ends[0], points, ends[1]]), uv)


def arc(
    centre: Point, radii: tuple[float, float], start_deg: float, stop_deg: float, steps: int = 12
) -> Float[ndarray, "n 3"]:
    """Return points on an elliptic arc in the XZ plane; 0 degrees is +X, 90 is +Z."""
    angle = np.radians(np.linspace(start_deg, stop_deg, steps))
    flat = [radii[0] * np.cos(angle), np.zeros(steps), radii[1] * np.sin(angle)]
    return np.column_stack(flat) + np.array(centre)


def disc_outline(radius: float, corners: int = 24) -> list[tuple[float, float]]:
    """Return a counter-clockwise circle for `prism`."""
    angle = 2.0 * math.pi * np.arange(corners) / corners
    return list(
        zip((radius * np.cos(angle)).tolist(), (radius * np.sin(angle)).tolist(), strict=True)
    )


# ------------------------------------------------------------------------------ pattern coordinates


def _cut_into_bands(
    line: Float[ndarray, "n 2"], period: float
) -> tuple[Float[ndarray, "k 2"], Float[ndarray, "k-1 3"]]:
    """Cut a profile where a new row of the pattern starts.

    Rows restart at hard edges and are stretched a little, so that whole rows fill every smooth run.

    Returns:
        The profile with the cuts added, and for each of its segments v at the start, v at the end,
        and the mean radius of its row.
    """
    step = np.diff(line, axis=0)
    length = np.linalg.norm(step, axis=1)
    unit = step / length[:, None]
    turn = np.einsum("ij,ij->i", unit[1:], unit[:-1]) < math.cos(math.radians(CREASE_DEG))
    edges = [0, *(np.flatnonzero(turn) + 1).tolist(), len(length)]
    points, bands = [line[:1]], []
    for start, stop in pairwise(edges):
        place = np.concatenate([[0.0], np.cumsum(length[start:stop])])
        rows = place[-1] / period
        whole = max(1, round(rows)) if rows > 0.6 else rows
        cuts = np.arange(1, math.ceil(whole - 1e-9)) / whole * place[-1]
        near = np.abs(place[:, None] - cuts).min(axis=1, initial=np.inf) < 1e-3 * place[-1]
        near[[0, -1]] = False  # a corner that a cut all but meets gives way to it
        at = np.sort(np.concatenate([place[~near], cuts]))
        run = np.column_stack([np.interp(at, place, line[start : stop + 1, i]) for i in (0, 1)])
        v = at / place[-1] * whole
        row = np.floor((v[1:] + v[:-1]) / 2)
        middle = np.interp(np.minimum(row + 0.5, whole / 2 if whole < 1 else whole), v, run[:, 0])
        points.append(run[1:])
        bands.append(np.column_stack([v[:-1], v[1:], middle]))
    return np.concatenate(points), np.concatenate(bands)


def _banded_uv(
    radius: Float[ndarray, " r"], bands: Float[ndarray, "r-1 3"], segments: int, around: float
) -> Float[ndarray, "r-1 c 4 2"]:
    """Return uv per quad corner: each row holds a whole number of periods, so no seam shows.

    Args:
        radius: of each ring; where it is 0 the ring is a pole.
        bands: as `_cut_into_bands` gives them; a mean radius of 0 stands for the ring's own.
        segments: quads around.
        around: periods around a circle of radius 1.
    """
    mean_radius = np.where(bands[:, 2] > 0, bands[:, 2], (radius[1:] + radius[:-1]) / 2)
    count = np.maximum(1.0, np.rint(around * mean_radius))
    left = np.arange(segments) / segments
    uv = np.empty((len(bands), segments, 4, 2))
    uv[..., 0] = np.stack([left, left + 1 / segments, left + 1 / segments, left], axis=-1)
    for pole, corners in ((radius[:-1] == 0, (0, 1)), (radius[1:] == 0, (2, 3))):
        for corner in corners:
            uv[pole, :, corner, 0] = left + 0.5 / segments
    uv[..., 0] *= count[:, None, None]
    uv[..., :2, 1], uv[..., 2:, 1] = bands[:, None, None, 0], bands[:, None, None, 1]
    return uv


def _planar_uv(
    corners: Float[ndarray, "r c 4 3"], normal: Float[ndarray, "r c 3"], period: float
) -> Float[ndarray, "r c 4 2"]:
    """Return uv seen along each quad's main axis, a pattern's centre in the middle of the surface.

    Edges too low for a row of the pattern get the seam between two rows instead, where the pattern
    shows its base colour: a thin plank must not come out in the second colour.
    """
    low, high = corners.min(axis=(0, 1, 2)), corners.max(axis=(0, 1, 2))
    thin = (high - low) / period < 0.65
    thin[0] = False  # X is never the direction in which rows follow each other
    local = (corners - (low + high) / 2) / period + np.where(thin, 0.0, 0.5)
    axis = np.abs(normal).argmax(axis=-1)[..., None, None]
    return np.where(
        axis == 2, local[..., [0, 1]], np.where(axis == 1, local[..., [0, 2]], local[..., 1:])
    )


# ------------------------------------------------------------------------------------------ meshing


def _lattice(
    points: Float[ndarray, "r c 3"],
    uv: Float[ndarray, "r-1 c 4 2"] | None,
    period: float = 1.0,
) -> Surface:
    """Return the skin over a grid of points whose columns close into rings.

    Rows that fall into one point are poles. Normals are smooth within `CREASE_DEG`.
    """
    after = np.roll(points, -1, axis=1)
    corners = np.stack([points[:-1], after[:-1], after[1:], points[1:]], axis=2)
    area = np.cross(corners[:, :, 2] - corners[:, :, 0], corners[:, :, 3] - corners[:, :, 1])
    size = np.linalg.norm(area, axis=-1, keepdims=True)
    flat = area / np.maximum(size, 1e-30)
    normal = _corner_normals(points, flat)
    if uv is None:
        uv = _planar_uv(corners, flat, period)
    triangles = [[0, 1, 2], [0, 2, 3]]
    position = corners[:, :, triangles].reshape(-1, 3, 3)
    edge = position[:, 1:] - position[:, :1]
    solid = np.linalg.norm(np.cross(edge[:, 0], edge[:, 1]), axis=-1) > 1e-12
    return Surface(
        position[solid],
        normal[:, :, triangles].reshape(-1, 3, 3)[solid],
        uv[:, :, triangles].reshape(-1, 3, 2)[solid],
    )


def _corner_normals(
    points: Float[ndarray, "r c 3"], flat: Float[ndarray, "q c 3"]
) -> Float[ndarray, "q c 4 3"]:
    """Return each quad corner's unit normal: the mean of the faces around it within the crease.

    Every face weighs the same: where a pattern's rows cut the quads must not change the shading.
    """
    limit = math.cos(math.radians(CREASE_DEG))
    wide = np.pad(flat, ((1, 1), (0, 0), (0, 0)))
    rows = len(flat)
    normal = np.repeat(flat[:, :, None], 4, axis=2)
    for corner, (down, left) in enumerate(((-1, -1), (-1, 1), (1, 1), (1, -1))):
        for row, column in ((down, 0), (0, left), (down, left)):
            other = np.roll(wide[1 + row : 1 + row + rows], -column, axis=1)
            near = np.einsum("qcx,qcx->qc", flat, other) > limit
            normal[:, :, corner] += np.where(near[..., None], other, 0.0)
    pole = np.ptp(points, axis=1).max(axis=-1) < 1e-12
    for quad, ring, pair in ((0, 0, (0, 1)), (-1, -1, (2, 3))):
        if pole[ring]:
            near = flat[quad] @ flat[quad].T > limit
            normal[quad][:, pair] = (near @ flat[quad])[:, None]
    return normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-30)
