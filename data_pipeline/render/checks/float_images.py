"""The size that an OpenEXR or Radiance HDR image declares, read from its header alone."""

import io
import re
import struct
from typing import IO

EXR = b"\x76\x2f\x31\x01"
RADIANCE = b"#?"
MULTI_PART = 0x10  # of the second byte of the version

MAX_HEADER_BYTES = 65536
"""Of either format; a longer header is damaged or hostile."""


def float_image_size(file: IO[bytes] | io.BytesIO) -> tuple[int, int] | None:
    """Return (width, height); None for another format.

    Raises:
        ValueError: the header begins as one of the two formats and cannot be read to its size.
    """
    magic = file.read(len(EXR))
    if not magic.startswith((EXR, RADIANCE)):
        return None
    header = magic + file.read(MAX_HEADER_BYTES)
    if magic == EXR:
        size = _exr_size(header)
        if header[5] & MULTI_PART:
            raise ValueError("an OpenEXR image of several parts, each with a size of its own")
        if min(size) < 1:
            raise ValueError("an OpenEXR image with an empty dataWindow")
        return size
    found = re.search(rb"\n[-+]([XY]) +(\d{1,9}) +[-+]([XY]) +(\d{1,9})\n", header)
    if found is None or found[1] == found[3]:
        raise ValueError("a Radiance image without its resolution line")
    first, second = int(found[2]), int(found[4])
    return (second, first) if found[1] == b"Y" else (first, second)


def _exr_size(header: bytes) -> tuple[int, int]:
    """Walk the attributes (name, type, size, value) to `dataWindow`: xMin, yMin, xMax, yMax."""
    at = 8  # magic and version
    try:
        while header[at] != 0:
            name_end = header.index(b"\0", at)
            type_end = header.index(b"\0", name_end + 1)
            (size,) = struct.unpack_from("<I", header, type_end + 1)
            value = type_end + 5
            if header[at:name_end] == b"dataWindow":
                left, top, right, bottom = struct.unpack_from("<4i", header, value)
                return right - left + 1, bottom - top + 1
            at = value + size
    except (IndexError, ValueError, struct.error) as error:
        raise ValueError("an OpenEXR image cut off in its header") from error
    raise ValueError("an OpenEXR image without a dataWindow")
