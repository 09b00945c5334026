"""Bytes and milliseconds of image codecs: `python benchmarks/codecs.py SHARDS [COUNT]`.

Takes COUNT (8) samples of SHARDS, evenly chosen, and prints for every codec and modality the bytes
of a view, the CPU milliseconds of encoding and decoding it (one thread, best of three), and whether
each 16 bit code comes back exactly. The yardstick is Pillow reading PNGs as OpenCV writes them.

Besides the project's own packages it wants `pip install imagecodecs blosc2 zstandard`; what is not
installed is left out and said so.
"""

import argparse
import importlib
import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.codec import decode_views, encode_views
from data_pipeline.shards.manifest import ShardSet

MODALITIES = ("rgb", "normal", "coord", "hit")
YARDSTICK = "PNG OpenCV default, Pillow reads"

Views = NDArray[Any]
"""`(v, h, w)` or `(v, h, w, c)`, uint8 or uint16."""


@dataclass(frozen=True)
class Codec:
    """Turns views into bytes and back; `decode` is also given the views, for shape and type."""

    name: str
    encode: Callable[[Views], list[bytes]]
    decode: Callable[[list[bytes], Views], Views]


def strip(views: Views) -> Views:
    """Stack views top to bottom."""
    return np.ascontiguousarray(views.reshape(-1, *views.shape[2:]))


def swapped(image: Views) -> Views:
    """Exchange red and blue, if there are any."""
    if image.ndim == 2:
        return image
    return cv2.cvtColor(image, cv2.COLOR_RGBA2BGRA if image.shape[2] == 4 else cv2.COLOR_RGB2BGR)


def opencv_png(level: int, png_filter: int) -> Callable[[Views], list[bytes]]:
    """Return an encoder; filters as in OpenCV's IMWRITE_PNG_FILTER."""
    flags = [cv2.IMWRITE_PNG_COMPRESSION, level, cv2.IMWRITE_PNG_FILTER, png_filter]
    return lambda views: [cv2.imencode(".png", swapped(strip(views)), flags)[1].tobytes()]


def opencv_read(content: list[bytes], _: Views) -> Views:
    """Read with OpenCV."""
    return swapped(cv2.imdecode(np.frombuffer(content[0], np.uint8), cv2.IMREAD_UNCHANGED))


def pillow_read(content: list[bytes], _: Views) -> Views:
    """Read with Pillow, which keeps 8 of the 16 bits of RGB."""
    return np.asarray(Image.open(io.BytesIO(content[0])))


def png_codecs() -> Iterator[Codec]:
    """PNG: by OpenCV at levels and filters, by this project."""
    adaptive, up = cv2.IMWRITE_PNG_ALL_FILTERS, cv2.IMWRITE_PNG_FILTER_UP
    yield Codec(YARDSTICK, opencv_png(6, adaptive), pillow_read)
    for level in (1, 3, 6, 9):
        yield Codec(f"PNG OpenCV level {level}", opencv_png(level, adaptive), opencv_read)
    for name in ("NONE", "SUB", "UP", "PAETH"):
        encode = opencv_png(6, getattr(cv2, f"IMWRITE_PNG_FILTER_{name}"))
        yield Codec(f"PNG OpenCV level 6, filter {name.lower()}", encode, opencv_read)
    yield Codec("PNG OpenCV filter up, Pillow reads", opencv_png(6, up), pillow_read)

    def ours(views: Views) -> list[bytes]:
        return [encode_views(views)]

    yield Codec("PNG ours, OpenCV reads", ours, opencv_read)
    yield Codec("PNG ours, Pillow reads", ours, pillow_read)
    yield Codec(
        "PNG ours (chosen)", ours, lambda content, v: strip(decode_views(content[0], len(v)))
    )


def byte_planes(views: Views) -> list[Views]:
    """Split 16 bit views into a high and a low image of 8 bits."""
    image = strip(views)
    if image.dtype == np.uint8:
        return [image]
    return [(image >> 8).astype(np.uint8), (image & 255).astype(np.uint8)]


def joined(planes: list[Views]) -> Views:
    """Undo `byte_planes`."""
    return planes[0] if len(planes) == 1 else planes[0].astype(np.uint16) << 8 | planes[1]


def webp_codecs() -> Iterator[Codec]:
    """WebP lossless: 16 bits as two images of 8; OpenCV knows one effort, Pillow several."""

    def encoder(quality: int, method: int) -> Callable[[Views], list[bytes]]:
        def encode(views: Views) -> list[bytes]:
            files = []
            for plane in byte_planes(views):
                file = io.BytesIO()
                image = Image.fromarray(plane)
                image.save(file, "webp", lossless=True, exact=True, quality=quality, method=method)
                files.append(file.getvalue())
            return files

        return encode

    def decode(content: list[bytes], views: Views) -> Views:
        planes = [opencv_read([part], views) for part in content]
        return joined(planes) if views.ndim == 4 else planes[0][..., 0]

    for quality, method in ((0, 0), (20, 2), (75, 4)):
        name = f"WebP lossless, quality {quality}, method {method}"
        yield Codec(name, encoder(quality, method), decode)


def jpegxl_codecs() -> Iterator[Codec]:
    """JPEG XL lossless, by imagecodecs."""
    library = importlib.import_module("imagecodecs")
    for effort in (1, 2, 3):

        def encode(views: Views, effort: int = effort) -> list[bytes]:
            return [library.jpegxl_encode(strip(views), lossless=True, effort=effort, numthreads=1)]

        yield Codec(
            f"JPEG XL lossless, effort {effort}",
            encode,
            lambda content, _: library.jpegxl_decode(content[0], numthreads=1),
        )


def blosc2_codecs() -> Iterator[Codec]:
    """Arrays in blosc2: zstd or LZ4 behind its filters."""
    library = importlib.import_module("blosc2")
    library.set_nthreads(1)
    kinds = library.Filter
    chains = {
        "zstd, shuffle": ([kinds.SHUFFLE], library.Codec.ZSTD),
        "zstd, bitshuffle": ([kinds.BITSHUFFLE], library.Codec.ZSTD),
        "zstd, shuffle + bytedelta": ([kinds.SHUFFLE, kinds.BYTEDELTA], library.Codec.ZSTD),
        "LZ4HC, bitshuffle": ([kinds.BITSHUFFLE], library.Codec.LZ4HC),
    }
    for name, (filters, codec) in chains.items():
        how = {"codec": codec, "filters": filters, "filters_meta": [0] * len(filters), "clevel": 5}

        def encode(views: Views, how: dict[str, Any] = how) -> list[bytes]:
            return [library.compress2(strip(views), typesize=views.itemsize, nthreads=1, **how)]

        def decode(content: list[bytes], views: Views) -> Views:
            raw = library.decompress2(content[0], nthreads=1)
            return np.frombuffer(raw, views.dtype).reshape(-1, *views.shape[2:])

        yield Codec(f"blosc2 {name}", encode, decode)


def zstd_codecs() -> Iterator[Codec]:
    """A format of our own: differences between rows, signs folded, bytes split, then zstd."""
    library = importlib.import_module("zstandard")

    def encode(views: Views, level: int) -> list[bytes]:
        rows = views.reshape(*views.shape[:2], -1).copy()
        rows[:, 1:] -= views.reshape(rows.shape)[:, :-1]
        if rows.dtype == np.uint16:
            signed = rows.view(np.int16)
            rows = np.stack(
                byte_planes(((signed << 1) ^ (signed >> 15)).view(np.uint16)[..., None])
            )
        return [library.ZstdCompressor(level=level).compress(rows.tobytes())]

    def decode(content: list[bytes], views: Views) -> Views:
        rows = np.frombuffer(library.ZstdDecompressor().decompress(content[0]), np.uint8).copy()
        if views.dtype == np.uint16:
            high, low = rows.reshape(2, -1, 4096)
            rows = cv2.merge([low, high]).view(np.uint16)
            rows = (rows >> 1) ^ (-(rows & 1)).view(np.uint16)
        rows = rows.reshape(*views.shape[:2], -1)
        for y in range(1, rows.shape[1]):
            rows[:, y] += rows[:, y - 1]
        return rows.reshape(-1, *views.shape[2:])

    for level in (3, 9, 15):
        yield Codec(f"zstd {level} of row differences", lambda v, at=level: encode(v, at), decode)


def cpu_ms(call: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """Return what `call` returns, and the CPU milliseconds of its fastest run."""
    fastest = float("inf")
    result = None
    for _ in range(repeats):
        start = time.process_time()
        result = call()
        fastest = min(fastest, time.process_time() - start)
    return result, 1000.0 * fastest


def measure(
    codec: Codec, samples: list[dict[str, Views]]
) -> dict[str, tuple[float, float, float, bool]]:
    """Return per modality: kB, encode ms and decode ms of a view, and whether all came back."""
    figures = {}
    for name in MODALITIES:
        size = encode = decode = num_views = 0.0
        exact = True
        for sample in samples:
            views = sample[name]
            content, encode_ms = cpu_ms(lambda v=views: codec.encode(v), 1)
            back, decode_ms = cpu_ms(lambda c=content, v=views: codec.decode(c, v), 3)
            exact &= np.array_equal(back, strip(views))
            size += sum(map(len, content)) / 1000.0
            encode, decode, num_views = (
                encode + encode_ms,
                decode + decode_ms,
                num_views + len(views),
            )
        figures[name] = (size / num_views, encode / num_views, decode / num_views, exact)
    return figures


def load(shards: Path, count: int) -> list[dict[str, Views]]:
    """Return the decoded views of evenly chosen samples."""
    shard_set = ShardSet(shards, "samples")
    chosen = np.linspace(0, len(shard_set) - 1, min(count, len(shard_set))).round().astype(int)
    samples = []
    for i in chosen.tolist():
        members = shard_set.read(i)
        num_views = len(json.loads(members["meta.json"])["cameras"])
        samples.append(
            {name: decode_views(members[f"{name}.png"], num_views) for name in MODALITIES}
        )
    return samples


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("count", type=int, nargs="?", default=8)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    samples = load(arguments.shards, arguments.count)
    shape = samples[0]["rgb"].shape
    print(f"{len(samples)} samples of {shape[0]} views of {shape[1]} px; of one view: kB, then ms")
    print("| codec | rgb | normal | coord | hit | all | encode | decode | exact |")
    print("|---|---|---|---|---|---|---|---|---|")
    for family in (png_codecs, webp_codecs, jpegxl_codecs, blosc2_codecs, zstd_codecs):
        try:
            codecs = list(family())
        except ImportError as error:
            print(f"left out: {family.__name__}: {error}")
            continue
        for codec in codecs:
            figures = measure(codec, samples)
            kilobytes, encode, decode, exact = zip(*figures.values(), strict=True)
            sizes = " | ".join(f"{size:.1f}" for size in (*kilobytes, sum(kilobytes)))
            verdict = "yes" if all(exact) else "no"
            print(
                f"| {codec.name} | {sizes} | {sum(encode):.1f} | {sum(decode):.2f} | {verdict} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
