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

CHUNK_FACES = 2500
"""Larger meshes are cut in space: xatlas takes 8 times as long for 3 times the faces, and cuts the
charts of parts on several threads. Parts half as large would cost a tenth of the texture."""

LEAST_PADDING_PX = 2
"""Below, bilinear samples at a chart's border would read its neighbour."""

LEAST_USE = 0.15
"""Where charts cover less of the texture than this, detail matters more: padding is halved."""

NUM_PACKINGS = 6
AIM, LEAST_SIDE = 0.97, 0.9
"""Of the texture's side: what packings shall take, and what they must."""


@dataclass(frozen=True)
class Charts:
    """A mesh cut into charts, which lie in a page of unit scale, side by side.

    Args:
        source: the mesh's vertex that each atlas vertex copies.
        faces: of atlas vertices.
        flat: where atlas vertices lie in the page.
        sides: width and height of each chart.
    """

    source: np.ndarray
    faces: np.ndarray
    flat: np.ndarray
    sides: np.ndarray

    def area(self, scale: float, padding_px: float) -> float:
        """Return the area of the charts' boxes, scaled and padded."""
        return float(np.prod(self.sides * scale + padding_px, axis=1).sum())


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
    packed = pack(charts, resolution_px, padding_px)
    while packed.use < LEAST_USE and padding_px > LEAST_PADDING_PX:
        padding_px = max(padding_px // 2, LEAST_PADDING_PX)
        packed = pack(charts, resolution_px, padding_px)
    np.savez(sys.stdout.buffer, source=packed.source, faces=packed.faces, uv=packed.uv)


def cut_charts(vertices: np.ndarray, faces: np.ndarray) -> Charts:
    """Return a mesh's charts."""
    parts = _split(vertices[faces].mean(axis=1), np.arange(len(faces)))
    atlas = xatlas.Atlas()
    used = []
    for part in parts:
        own, local = np.unique(faces[part], return_inverse=True)
        used.append(own)
        atlas.add_mesh(vertices[own], local.reshape(-1, 3).astype(np.uint32))
    atlas.generate()
    source, cut, flat, chart, count = [], np.empty(faces.shape, np.int64), [], [], 0
    for number, (part, own) in enumerate(zip(parts, used, strict=True)):
        copied, local, uv = atlas.get_mesh(number)
        source.append(own[copied])
        cut[part] = local.astype(np.int64) + count
        flat.append(uv)
        own_chart = atlas.get_mesh_vertex_assignment(number)[1].astype(np.int64)
        chart.append(own_chart + (number << 32))
        count += len(copied)
    placed = np.concatenate(flat) * [atlas.width, atlas.height]
    if not placed.max() > 0.0:  # NaN neither
        raise ValueError("xatlas gave charts without area")
    label = np.concatenate(chart)
    order = np.argsort(label, kind="stable")
    first = np.flatnonzero(np.diff(label[order], prepend=-1))
    low, high = (extreme.reduceat(placed[order], first) for extreme in (np.minimum, np.maximum))
    return Charts(np.concatenate(source), cut, placed, high - low)


def pack(charts: Charts, resolution_px: int, padding_px: int) -> Packed:
    """Return the charts, as large as fits, with so many texels between them."""
    margin_px = (padding_px + 1) // 2  # which xatlas keeps around every chart
    best: tuple[float, Any] | None = None
    fill = charts.area(1.0, 0.0) / float(charts.flat.max()) ** 2
    for _ in range(NUM_PACKINGS):
        scale = _scale_that_fills(charts, 2 * margin_px + 1, fill * (AIM * resolution_px) ** 2)
        atlas = xatlas.Atlas()
        atlas.add_uv_mesh(charts.flat.astype(np.float32), charts.faces.astype(np.uint32))
        options = xatlas.PackOptions()
        options.padding, options.bilinear, options.texels_per_unit = margin_px, True, scale
        atlas.generate(xatlas.ChartOptions(), options)
        side = max(atlas.width, atlas.height)
        if side <= resolution_px and (best is None or scale > best[0]):
            best = scale, atlas
        if LEAST_SIDE * resolution_px <= side <= resolution_px:
            break
        fill = charts.area(scale, 2 * margin_px + 1) / side**2
    if best is not None:
        atlas, side = best[1], resolution_px
    copied, local, uv = atlas[0]
    return Packed(charts.source[copied], local, uv * [atlas.width, atlas.height] / side)


def _scale_that_fills(charts: Charts, padding_px: int, area: float) -> float:
    """Return the scale at which the charts' padded boxes have so much area."""
    square, line = charts.area(1.0, 0.0), padding_px * float(charts.sides.sum())
    missing = max(area - charts.area(0.0, padding_px), 0.01 * area)
    return (np.sqrt(line**2 + 4.0 * square * missing) - line) / (2.0 * square)


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
