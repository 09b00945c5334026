"""The child process of `atlas.unwrap`: xatlas cuts charts once, then packs them until they fit.

Reads an npz of `vertices`, `faces`, `resolution_px` and `padding_px` from standard input; writes
one of `source`, `faces` and `uv`. xatlas's own `resolution` is only a wish: its page may come out
twice as large, and shrunk to the texture its padding halves. Here the charts' scale is sought.
"""

import io
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import xatlas

CHUNK_FACES = 10_000
"""Larger meshes are cut in space: xatlas takes 8 times as long for 3 times the faces."""

LEAST_PADDING_PX = 2
"""Below, bilinear samples at a chart's border would read its neighbour."""

LEAST_USE = 0.15
"""Where charts cover less of the texture than this, detail matters more: padding is halved."""

NUM_PACKINGS = 6
LEAST_FILL = 0.93


@dataclass(frozen=True)
class Packed:
    """Charts in their texture."""

    source: np.ndarray
    faces: np.ndarray
    uv: np.ndarray

    @property
    def use(self) -> float:
        """Share of the texture that faces cover."""
        a, b, c = np.moveaxis(self.uv[self.faces], 1, 0)
        (ux, uy), (vx, vy) = (b - a).T, (c - a).T
        return float(np.abs(ux * vy - uy * vx).sum() / 2.0)


def main() -> None:
    """Read, unwrap, write."""
    mesh = np.load(io.BytesIO(sys.stdin.buffer.read()))
    resolution_px, padding_px = int(mesh["resolution_px"]), int(mesh["padding_px"])
    charts = cut_charts(mesh["vertices"], mesh["faces"])
    packed = pack(*charts, resolution_px, padding_px)
    while packed.use < LEAST_USE and padding_px > LEAST_PADDING_PX:
        padding_px = max(padding_px // 2, LEAST_PADDING_PX)
        packed = pack(*charts, resolution_px, padding_px)
    np.savez(sys.stdout.buffer, source=packed.source, faces=packed.faces, uv=packed.uv)


def cut_charts(
    vertices: np.ndarray, faces: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the source of every atlas vertex, the faces of atlas vertices, and disjoint charts."""
    parts = _split(vertices[faces].mean(axis=1), np.arange(len(faces)))
    atlas = xatlas.Atlas()
    used = []
    for part in parts:
        own, local = np.unique(faces[part], return_inverse=True)
        used.append(own)
        atlas.add_mesh(vertices[own], local.reshape(-1, 3).astype(np.uint32))
    atlas.generate()
    source, cut, flat, count = [], np.empty(faces.shape, np.int64), [], 0
    for part, own, (copied, local, uv) in zip(
        parts, used, map(atlas.get_mesh, range(len(parts))), strict=True
    ):
        source.append(own[copied])
        cut[part] = local.astype(np.int64) + count
        flat.append(uv)
        count += len(copied)
    placed = np.concatenate(flat) * [atlas.width, atlas.height]
    if not placed.max() > 0.0:  # NaN neither
        raise ValueError("xatlas gave charts without area")
    return np.concatenate(source), cut, placed


def pack(
    source: np.ndarray, faces: np.ndarray, flat: np.ndarray, resolution_px: int, padding_px: int
) -> Packed:
    """Return the charts, as large as fits, with so many texels between them."""
    scale, tried = 0.7 * resolution_px / float(flat.max()), []
    best: tuple[float, Any] | None = None
    for _ in range(NUM_PACKINGS):
        atlas = xatlas.Atlas()
        atlas.add_uv_mesh(flat.astype(np.float32), faces.astype(np.uint32))
        options = xatlas.PackOptions()
        options.padding, options.bilinear, options.texels_per_unit = padding_px, True, scale
        atlas.generate(xatlas.ChartOptions(), options)
        side = max(atlas.width, atlas.height)
        tried.append((scale, side))
        if side <= resolution_px and (best is None or scale > best[0]):
            best = scale, atlas
        if LEAST_FILL * resolution_px <= side <= resolution_px:
            break
        # The page's side is about a line in the scale: what charts take, and what padding takes.
        (s0, side0), (s1, side1) = (
            tried[-2] if len(tried) > 1 else (0.0, 4.0 * padding_px),
            tried[-1],
        )
        slope = (side1 - side0) / (s1 - s0) if s1 != s0 else side1 / s1
        step = (0.97 * resolution_px - side1) / slope if slope > 0 else 0.0
        scale = float(np.clip(s1 + step, 0.3 * s1, 3.0 * s1))
    if best is not None:
        atlas, side = best[1], resolution_px
    copied, local, uv = atlas[0]
    return Packed(source[copied], local, uv * [atlas.width, atlas.height] / side)


def _split(centre: np.ndarray, faces: np.ndarray) -> list[np.ndarray]:
    """Return parts of at most CHUNK_FACES faces, halved across their longest side."""
    if len(faces) <= CHUNK_FACES:
        return [faces]
    axis = np.ptp(centre[faces], axis=0).argmax()
    order = faces[np.argsort(centre[faces, axis], kind="stable")]
    half = len(order) // 2
    return _split(centre, np.sort(order[:half])) + _split(centre, np.sort(order[half:]))


if __name__ == "__main__":
    main()
