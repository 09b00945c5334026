"""The tokens of a USD crate file, among which are the paths of all files that it names.

The format: a header with the place of a table of sections; the section TOKENS holds three numbers
(how many, bytes unpacked, bytes packed) and the tokens, each ended by a zero byte, compressed as
LZ4 blocks behind one byte that counts the blocks (0: a single one, without a size of its own).
"""

import struct

from data_pipeline.render.failures import AssetFailure

MAX_TOKEN_BYTES = 16_000_000
"""Unpacked; names take some kilobytes."""


def crate_tokens(content: bytes) -> list[str]:
    """Return the tokens of a crate file.

    Raises:
        AssetFailure: `unreadable`, `unsupported` (before version 0.4), `too_large`.
    """
    try:
        if content[8:10] < b"\0\4":
            raise AssetFailure("unsupported", "a USD crate before version 0.4: save it anew")
        (toc,) = struct.unpack_from("<q", content, 16)
        (count,) = struct.unpack_from("<Q", content, toc)
        if count > 64:
            raise AssetFailure("unreadable", f"{count} sections in a USD crate")
        for index in range(count):
            name, start, _ = struct.unpack_from("<16sqq", content, toc + 8 + 32 * index)
            if name.rstrip(b"\0") == b"TOKENS":
                _, unpacked, packed = struct.unpack_from("<QQQ", content, start)
                if unpacked > MAX_TOKEN_BYTES or packed > MAX_TOKEN_BYTES:
                    raise AssetFailure("too_large", f"{unpacked} bytes of names in a USD crate")
                text = _unpack(content[start + 24 : start + 24 + packed], unpacked)
                return text.decode("utf-8", "replace").split("\0")
    except (struct.error, IndexError, ValueError) as error:
        raise AssetFailure("unreadable", f"a damaged USD crate: {error}") from error
    raise AssetFailure("unreadable", "a USD crate without tokens")


def _unpack(packed: bytes, size: int) -> bytes:
    """Return the LZ4 blocks of a section, unpacked."""
    num_blocks, rest = packed[0], packed[1:]
    if num_blocks == 0:
        return _unpack_block(rest, size)
    out = b""
    for _ in range(num_blocks):
        (length,) = struct.unpack_from("<i", rest)
        out += _unpack_block(rest[4 : 4 + length], size - len(out))
        rest = rest[4 + length :]
    return out


def _unpack_block(block: bytes, limit: int) -> bytes:
    """Return an LZ4 block unpacked; never more than `limit` bytes.

    Raises:
        ValueError: it is damaged, or holds more.
    """
    out, place = bytearray(), 0
    while place < len(block):
        token = block[place]
        place += 1
        num_literals, place = _length(block, place, token >> 4)
        out += block[place : place + num_literals]
        place += num_literals
        if place >= len(block):
            break
        offset = block[place] | block[place + 1] << 8
        num_matched, place = _length(block, place + 2, token & 15)
        num_matched += 4
        if not 0 < offset <= len(out) or len(out) + num_matched > limit:
            raise ValueError("its names do not unpack")
        start = len(out) - offset
        for index in range(num_matched):  # byte by byte: a match may overlap itself
            out.append(out[start + index])
    if len(out) > limit:
        raise ValueError("its names do not unpack")
    return bytes(out)


def _length(block: bytes, place: int, nibble: int) -> tuple[int, int]:
    """Return a length, and where what follows it begins."""
    total = nibble
    while nibble == 15:
        total += block[place]
        place += 1
        if block[place - 1] != 255:
            break
    return total, place
