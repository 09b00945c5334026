"""Plain PNG files of one kind that can be read several times faster than by libpng.

Any program opens them. What is special is only what the PNG format leaves to the writer: every row
is predicted from the row above (filter `Up`), but for the first row of each view (filter `None`).
After one call of libdeflate all views are then restored together, one vector addition a row. Runs
beside Blender (numpy < 2) and in training alike.
"""

import struct
import zlib
from typing import Any

import deflate
import numpy as np
from numpy.typing import NDArray

LEVEL = 7
"""libdeflate's level; part of what makes equal inputs give equal bytes."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS_OF_COLOUR_TYPE = {0: 1, 2: 3, 6: 4}  # grey, RGB, RGBA
_COLOUR_TYPE_OF_CHANNELS = {c: colour for colour, c in _CHANNELS_OF_COLOUR_TYPE.items()}
_FILTER_NONE, _FILTER_UP = 0, 2
_MAX_PIXELS = 2**28
"""A header that claims more is not believed, and nothing is allocated for it."""


def write_png(views: NDArray[Any]) -> bytes:
    """Return `views`, `(v, h, w, c)` with 1, 3 or 4 channels, as one PNG, stacked top to bottom.

    Raises:
        ValueError: the shape or the type of number has no such PNG.
    """
    if views.ndim != 4 or views.shape[3] not in _COLOUR_TYPE_OF_CHANNELS or not views.size:
        raise ValueError(f"an array of shape {views.shape} is no stack of grey, RGB or RGBA views")
    if views.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"views of {views.dtype} do not fit a PNG: give uint8 or uint16")
    num_views, height, width, channels = views.shape
    depth_bits = 8 * views.itemsize
    samples = np.ascontiguousarray(views, ">u2" if depth_bits == 16 else np.uint8)
    rows = samples.view(np.uint8).reshape(num_views, height, width * channels * views.itemsize)
    filtered = np.empty((num_views, height, rows.shape[2] + 1), np.uint8)
    filtered[:, 1:, 0], filtered[:, 0, 0] = _FILTER_UP, _FILTER_NONE
    filtered[:, 0, 1:] = rows[:, 0]
    np.subtract(rows[:, 1:], rows[:, :-1], out=filtered[:, 1:, 1:])  # modulo 256, as PNG wants it
    header = struct.pack(
        ">IIBBBBB",
        width,
        num_views * height,
        depth_bits,
        _COLOUR_TYPE_OF_CHANNELS[channels],
        0,
        0,
        0,
    )
    data = bytes(deflate.zlib_compress(filtered.tobytes(), LEVEL))
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, content) for kind, content in chunks)


def read_png(png: bytes, num_views: int) -> NDArray[Any] | None:
    """Return the `(v, h, w, c)` views of `write_png`, or None if another writer made the file.

    Raises:
        ValueError: it is of this kind, but damaged: the stream's own checksum tells.
    """
    header = _own_header(png, num_views)
    if header is None:
        return None
    width, total_height, depth_bits, channels, start, size = header
    height, stride = total_height // num_views, width * channels * depth_bits // 8
    num_bytes = total_height * (stride + 1)
    try:
        stream = deflate.zlib_decompress(memoryview(png)[start : start + size], num_bytes)
    except deflate.DeflateError as error:
        raise ValueError(f"a damaged PNG ({error})") from error
    if len(stream) != num_bytes:
        raise ValueError(f"a damaged PNG: it holds {len(stream)} bytes of pixels, not {num_bytes}")
    filtered = np.frombuffer(stream, np.uint8).reshape(num_views, height, stride + 1)
    if filtered[:, 0, 0].any() or (filtered[:, 1:, 0] != _FILTER_UP).any():
        return None
    rows = np.empty((num_views, height, stride), np.uint8)
    rows[:, 0] = filtered[:, 0, 1:]
    for y in range(1, height):
        np.add(filtered[:, y, 1:], rows[:, y - 1], out=rows[:, y])
    samples = rows.view(">u2").astype(np.uint16) if depth_bits == 16 else rows
    return samples.reshape(num_views, height, width, channels)


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def _own_header(png: bytes, num_views: int) -> tuple[int, int, int, int, int, int] | None:
    """Return width, height, bits, channels, start and size of the pixel stream, if it is ours.

    Ours has exactly three chunks: IHDR, one IDAT, IEND.
    """
    if len(png) < 57 or png[:8] != _SIGNATURE or png[12:16] != b"IHDR" or png[37:41] != b"IDAT":
        return None
    width, height, depth_bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", png, 16)
    (size,) = struct.unpack_from(">I", png, 33)
    channels = _CHANNELS_OF_COLOUR_TYPE.get(colour)
    if channels is None or depth_bits not in (8, 16) or interlaced:
        return None
    if len(png) != 41 + size + 16 or png[-8:-4] != b"IEND":
        return None
    if not 0 < width * height <= _MAX_PIXELS or height % num_views:
        return None
    return width, height, depth_bits, channels, 41, size
