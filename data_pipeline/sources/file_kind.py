"""Tell from a file's first bytes whether it is what its name says: error pages get saved as assets.

Standard library only, and cheap: no more than the first kilobyte is read.
"""

import struct
from pathlib import Path

SUFFIXES = (
    ".glb", ".gltf", ".obj", ".fbx", ".ply", ".stl", ".usd", ".usda", ".usdc", ".usdz", ".dae",
    ".blend",
)  # fmt: skip
"""Kinds of file that count as assets, in any case of letters."""

HEAD_BYTES = 1024

MAGIC = {
    ".glb": (b"glTF",),
    ".ply": (b"ply\n", b"ply\r"),
    ".fbx": (b"Kaydara FBX Binary",),
    ".usdc": (b"PXR-USDC",),
    ".usda": (b"#usda",),
    ".usd": (b"PXR-USDC", b"#usda"),
    ".usdz": (b"PK\x03\x04",),
    ".blend": (b"BLENDER", b"\x28\xb5\x2f\xfd", b"\x1f\x8b"),  # plain, Zstandard, gzip
}
"""How files begin; the other kinds are text without a fixed beginning, or (STL) anything."""

TEXT_KINDS = frozenset({".gltf", ".obj", ".dae", ".usda"})

OTHERS = (
    (b"<!doctype html", "an HTML page, such as an error page saved as an asset"),
    (b"<html", "an HTML page, such as an error page saved as an asset"),
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself (git lfs pull)"),
    (b"pk\x03\x04", "a ZIP archive: unpack it"),
    (b"\x1f\x8b", "gzip-compressed: unpack it"),
    (b"rar!", "a RAR archive: unpack it"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it"),
    (b"\x89png", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"gltf", "a GLB file"),
    (b"kaydara fbx binary", "a binary FBX file"),
    (b"; fbx", "an ASCII FBX file: save it as binary FBX"),
    (b"solid ", "an STL file"),
    (b"ply\n", "a PLY file"),
    (b"#usda", "a USD text file"),
    (b"pxr-usdc", "a USD binary file"),
    (b"blender", "a Blender file"),
    (b"<?xml", "XML"),
    (b"{", "JSON text"),
)
"""What a file may be instead, by how it begins in lower case."""


class WrongContent(ValueError):  # noqa: N818 - a finding about a file
    """A file is not what its name says; the message says what it is."""


def check_kind(path: Path) -> None:
    """Raise WrongContent unless the file begins as its suffix demands.

    Raises:
        WrongContent: it is empty, truncated, or of another kind.
        OSError: it cannot be read.
    """
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise WrongContent("the file is empty (0 bytes)")
    expected = MAGIC.get(suffix)
    plain = head.removeprefix(b"\xef\xbb\xbf").lstrip() if suffix in TEXT_KINDS else head
    fits = plain.startswith(expected) if expected else True
    if suffix in (".obj", ".stl"):
        fits = not plain.lstrip().lower().startswith(tuple(other for other, _ in OTHERS[:8]))
    elif suffix == ".dae":
        fits = b"<collada" in plain.lower()
    elif suffix == ".gltf":
        fits = plain.startswith(b"{")
    if not fits:
        raise WrongContent(f"not a {suffix[1:].upper()} file but {_what_is(head)}")
    if suffix == ".glb":
        _check_glb(head, path.stat().st_size)


def _what_is(head: bytes) -> str:
    beginning = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for start, name in OTHERS:
        if beginning.startswith(start):
            return name
    return f"something that begins with {head[:12]!r}"


def _check_glb(head: bytes, size: int) -> None:
    """Raise WrongContent unless the twenty bytes of a GLB's two headers agree with its size."""
    if len(head) < 20:
        raise WrongContent(f"truncated: {size} bytes, less than a GLB's header")
    _, version, length, json_length, kind = struct.unpack_from("<4sIIII", head)
    if version == 2 and length > size:
        raise WrongContent(f"truncated: {size} of {length} bytes")
    if version == 2 and (kind != 0x4E4F534A or json_length > length - 20):
        raise WrongContent("the GLB's first chunk is not its JSON")
