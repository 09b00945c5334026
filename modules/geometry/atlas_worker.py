"""A child process of `atlas.unwrap`: xatlas cuts a part of a mesh into charts, or packs charts.

Answers every message on standard input with one on standard output, until the input ends. Parts
have `vertices` and `faces`; charts that are to be packed have `resolution_px` and `padding_px` too.

xatlas starts a thread for every core and wakes them all for every chart, which takes longer than
its work: the process keeps to the core that its second argument names, and there are several of
them. The first names the parent, with which it ends, even where xatlas never does.
"""

import ctypes
import io
import os
import signal
import sys
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

import numpy as np
import xatlas

LEAST_PADDING_PX = 2
"""Below, bilinear samples at a chart's border would read its neighbour."""

LEAST_USE = 0.15
"""Where charts cover less of the texture than this, detail matters more: padding is halved."""

PR_SET_PDEATHSIG = 1
"""From <linux/prctl.h>: the signal that this process gets when the one that started it ends."""

NUM_PACKINGS = 6
AIM, LEAST_SIDE = 0.97, 0.9
"""Of the texture's side: what packings shall take, and what they must."""


@dataclass(frozen=True)
class Charts:
    """A mesh cut into charts, which lie side by side on a plane in the mesh's unit of length.

    Args:
        source: the mesh's vertex that each atlas vertex copies.
        faces: of atlas vertices.
        flat: where atlas vertices lie on the plane.
        sides: width and height of each chart.
        page: area that xatlas packed them into.
    """

    source: np.ndarray
    faces: np.ndarray
    flat: np.ndarray
    sides: np.ndarray
    page: float

    def area(self, scale: float, gap_px: float) -> float:
        """Return the area of the charts' boxes, scaled, with a gap beside each."""
        return float(np.prod(self.sides * scale + gap_px, axis=1).sum())


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
    while message := receive(sys.stdin.buffer):
        if "flat" in message:
            sizes = [message.pop(key) for key in ("resolution_px", "padding_px")]
            answer = pack(Charts(**message), *sizes)
        else:
            answer = cut_charts(**message)
        send(sys.stdout.buffer, **asdict(answer))


def send(stream: BinaryIO, **arrays: Any) -> None:
    """Write a message."""
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    stream.write(len(packed.getvalue()).to_bytes(8, "little") + packed.getvalue())
    stream.flush()


def receive(stream: BinaryIO) -> dict[str, Any]:
    """Return the next message; nothing where the stream ends."""
    size = int.from_bytes(stream.read(8), "little")
    packed = stream.read(size)
    if not size or len(packed) < size:
        return {}
    arrays = np.load(io.BytesIO(packed))
    return {key: arrays[key] if arrays[key].ndim else arrays[key].item() for key in arrays}


def cut_charts(vertices: np.ndarray, faces: np.ndarray) -> Charts:
    """Return the charts of a mesh."""
    atlas = xatlas.Atlas()
    atlas.add_mesh(vertices, faces)
    atlas.generate()
    source, cut, uv = atlas.get_mesh(0)
    flat = uv * (np.array([atlas.width, atlas.height]) / atlas.texels_per_unit)
    if not (len(flat) and flat.max() > 0.0):  # NaN neither
        raise ValueError("xatlas gave charts without area")
    chart = atlas.get_mesh_vertex_assignment(0)[1]
    order = np.argsort(chart, kind="stable")
    first = np.flatnonzero(np.diff(chart[order].astype(np.int64), prepend=-2))
    low, high = (extreme.reduceat(flat[order], first) for extreme in (np.minimum, np.maximum))
    return Charts(source, cut, flat, high - low, float(flat.max()) ** 2)


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
    the texture its padding halves. So the charts' scale is sought.
    """
    margin_px = (padding_px + 1) // 2  # which xatlas keeps around every chart
    gap_px = 2 * margin_px + 1
    best: tuple[float, Any] | None = None
    fill = charts.area(1.0, 0.0) / charts.page
    for _ in range(NUM_PACKINGS):
        scale = _scale_that_fills(charts, gap_px, fill * (AIM * resolution_px) ** 2)
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
        fill = charts.area(scale, gap_px) / side**2
    if best is not None:
        atlas, side = best[1], resolution_px
    copied, local, uv = atlas[0]
    return Packed(charts.source[copied], local, uv * [atlas.width, atlas.height] / side)


def _scale_that_fills(charts: Charts, gap_px: int, area: float) -> float:
    """Return the scale at which the charts' boxes, with a gap beside each, have so much area."""
    square, line = charts.area(1.0, 0.0), gap_px * float(charts.sides.sum())
    missing = max(area - charts.area(0.0, gap_px), 0.01 * area)
    return (np.sqrt(line**2 + 4.0 * square * missing) - line) / (2.0 * square)


if __name__ == "__main__":
    main()
