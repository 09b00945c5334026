"""Small files that declare too much or point elsewhere, made by code; and how a refusal is told."""

import struct
import zipfile
import zlib
from pathlib import Path

import pytest

from data_pipeline.render.failures import AssetFailure
from data_pipeline.render.precheck import check_file


def png(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that declares this size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def jpeg(width: int, height: int) -> bytes:
    frame = struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\x00"
    return b"\xff\xd8\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame + b"\xff\xd9"


def exr(width: int, height: int) -> bytes:
    """Return the header of an OpenEXR image of this size."""

    def attribute(name: bytes, kind: bytes, value: bytes) -> bytes:
        return name + b"\0" + kind + b"\0" + struct.pack("<I", len(value)) + value

    window = struct.pack("<4i", -7, 4, width - 8, height + 3)
    display = attribute(b"displayWindow", b"box2i", struct.pack("<4i", 0, 0, 7, 7))
    compression = attribute(b"compression", b"compression", b"\0")
    data = attribute(b"dataWindow", b"box2i", window)
    return b"\x76\x2f\x31\x01\x02\0\0\0" + compression + display + data + b"\0"


def hdr(width: int, height: int) -> bytes:
    """Return the header of a Radiance image of this size."""
    return b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y %d +X %d\n" % (height, width)


def refused(path: Path) -> AssetFailure:
    """Return why a file is refused; it must be, in one line."""
    with pytest.raises(AssetFailure) as caught:
        check_file(path)
    assert caught.value.message
    assert "\n" not in caught.value.message
    return caught.value


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def usdz(path: Path, members: dict[str, bytes | str], compression: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def write_links_that_lead_out(parent: Path) -> Path:
    """Return a folder of assets with links to things beside it, which exist."""
    write(parent / "secret.png", png(8, 8))
    write(parent / "secret.mtl", "newmtl m\n")
    made = parent / "assets"
    made.mkdir()
    (made / "link.png").symlink_to(parent / "secret.png")
    (made / "folder_link").symlink_to(parent)
    return made
