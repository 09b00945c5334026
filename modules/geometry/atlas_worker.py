"""A child process of `atlas.unwrap`: xatlas cuts a part of a mesh into charts, or packs charts.

Answers every message on standard input with one on standard output, until the input ends. Parts
have `vertices` and `faces`; charts that are to be packed have `resolution_px` and `padding_px` too.

xatlas starts a thread for every core and wakes them all for every chart, which takes longer than
its work: the process keeps to the core that its second argument names, and there are several of
them. The first names the parent, with which it ends, even where xatlas never does.
"""

import ctypes
import os
import pickle
import signal
import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xatlas

LEAST_PADDING_PX = 2
"""Below, bilinear samples at a chart's border would read its neighbour."""

LEAST_USE = 0.15
"""Where charts cover less of the texture than this, detail matters more: padding is halved."""

PR_SET_PDEATHSIG = 1
"""From <linux/prctl.h>: the signal that this process gets when the one that started it ends."""

FILL = 0.73
"""Share of the page that `Charts.area` mostly comes to, whatever the mesh: the first guess."""

NUM_PACKINGS = 6
AIM, LEAST_SIDE = 0.98, 0.95
"""Of the page's side: what packings shall take, and what they must."""


@dataclass(frozen=True)
class Charts:
    """A mesh cut into charts, which lie side by side on a plane in the mesh's unit of length.

    Args:
        source: the mesh's vertex that each atlas vertex copies.
        faces: of atlas vertices.
        flat: where atlas vertices lie on the plane.
        sides: width and height of each chart.
    """

    source: np.ndarray
    faces: np.ndarray
    flat: np.ndarray
    sides: np.ndarray

    def area(self, scale: float, gap: float) -> float:
        """Return the area of the charts, scaled, with a gap along two sides of each one's box."""
        square, line, constant = self._area(gap)
        return square * scale**2 + line * scale + constant

    def scale(self, area: float, gap: float) -> float:
        """Return the scale at which they have so much area; where gaps take it all, a small one."""
        square, line, constant = self._area(gap)
        left = max(area - constant, 0.01 * area)
        return (np.sqrt(line**2 + 4.0 * square * left) - line) / (2.0 * square)

    def _area(self, gap: float) -> tuple[float, float, float]:
        """Return the area's coefficients of the scale squared, the scale and one."""
        square = flat_area(self.flat, self.faces)
        return square, gap * float(self.sides.sum()), gap**2 * len(self.sides)


@dataclass(frozen=True)
class Packed:
    """Charts in their texture."""

    source: np.ndarray
    faces: np.ndarray
    uv: np.ndarray

    @property
    def use(self) -> float:
        """Share of the texture that faces cover."""
        return flat_area(self.uv, self.faces)


def flat_area(uv: np.ndarray, faces: np.ndarray) -> float:
    """Return the area that faces cover in the plane of their texture coordinates."""
    a, b, c = np.moveaxis(uv[faces], 1, 0)
    (ux, uy), (vx, vy) = (b - a).T, (c - a).T
    return float(np.abs(ux * vy - uy * vx).sum() / 2.0)


def main() -> None:
    """Answer messages."""
    parent, core = (int(argument) for argument in sys.argv[1:])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the call above
            return
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[core % len(cores)]})
    while True:
        try:
            message = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        if "flat" in message:
            sizes = [message.pop(key) for key in ("resolution_px", "padding_px")]
            answer = pack(Charts(**message), *sizes)
        else:
            answer = cut_charts(**message)
        pickle.dump(asdict(answer), sys.stdout.buffer)
        sys.stdout.buffer.flush()


def cut_charts(vertices: np.ndarray, faces: np.ndarray) -> Charts:
    """Return the charts of a mesh."""
    atlas = xatlas.Atlas()
    atlas.add_mesh(vertices, faces)
    rough = xatlas.PackOptions()  # as `pack` packs them again
    rough.bilinear = rough.rotate_charts = False
    atlas.generate(xatlas.ChartOptions(), rough)
    source, cut, uv = atlas.get_mesh(0)
    flat = uv * (np.array([atlas.width, atlas.height]) / atlas.texels_per_unit)
    if not (len(flat) and flat.max() > 0.0):  # NaN neither
        raise ValueError("xatlas gave charts without area")
    chart = atlas.get_mesh_vertex_assignment(0)[1]
    order = np.argsort(chart, kind="stable")
    first = np.flatnonzero(np.diff(chart[order].astype(np.int64), prepend=-2))
    low, high = (extreme.reduceat(flat[order], first) for extreme in (np.minimum, np.maximum))
    return Charts(source, cut, flat, high - low)


def pack(charts: Charts, resolution_px: int, padding_px: int) -> Packed:
    """Return the charts in a texture, with so many texels between them; fewer if they are many."""
    packed = _pack(charts, resolution_px, padding_px)
    while packed.use < LEAST_USE and padding_px > LEAST_PADDING_PX:
        padding_px = max(padding_px // 2, LEAST_PADDING_PX)
        packed = _pack(charts, resolution_px, padding_px)
    return packed


def _pack(charts: Charts, resolution_px: int, padding_px: int) -> Packed:
    """Return the charts, as large as fits.

    xatlas's own `resolution` is only a wish: its page may come out twice as large, and shrunk to
    the texture its padding halves. So the charts' scale is sought. The page's cells are as large as
    leaves margins of two: with single texels it takes 2.5 times as long and fits 4 % better.
    """
    margin_px = (padding_px + 1) // 2  # around every chart
    cell_px = max(1, margin_px // 2)
    page, margin = resolution_px // cell_px, -(-margin_px // cell_px)
    gap = 2 * margin + 1
    best: tuple[float, Any] | None = None
    fill = FILL
    for _ in range(NUM_PACKINGS):
        scale = charts.scale(fill * (AIM * page) ** 2, gap)
        atlas = xatlas.Atlas()
        atlas.add_uv_mesh(charts.flat.astype(np.float32), charts.faces.astype(np.uint32))
        options = xatlas.PackOptions()
        options.padding, options.bilinear, options.texels_per_unit = margin, False, scale
        atlas.generate(xatlas.ChartOptions(), options)
        side = max(atlas.width, atlas.height)
        if side <= page and (best is None or scale > best[0]):
            best = scale, atlas
        if LEAST_SIDE * page <= side <= page:
            break
        fill = charts.area(scale, gap) / side**2
    if best is not None:
        atlas, side = best[1], page
    copied, local, uv = atlas[0]
    return Packed(charts.source[copied], local, uv * [atlas.width, atlas.height] / side)


if __name__ == "__main__":
    main()
