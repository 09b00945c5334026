"""Read a glTF's JSON and find its binary parts, believing nothing. Standard library only."""

import base64
import binascii
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.render.checks.references import inside
from data_pipeline.render.failures import AssetFailure
from data_pipeline.render.limits import MAX_BYTES, MAX_JSON_BYTES

GLB_HEADER_BYTES, CHUNK_HEADER_BYTES = 12, 8
BINARY_CHUNK = 0x004E4942


@dataclass(frozen=True)
class GltfDocument:
    """A parsed glTF.

    Args:
        path: of the file.
        json: the document.
        binary: (first byte, number of bytes) of a GLB's binary chunk, or None.
    """

    path: Path
    json: dict[str, Any]
    binary: tuple[int, int] | None

    def table(self, name: str) -> list[dict[str, Any]]:
        """Return a top-level array of objects; empty if there is none.

        Raises:
            AssetFailure: `unreadable`: it is something else.
        """
        rows = self.json.get(name, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise AssetFailure("unreadable", f"its {name} are no list of objects")
        return rows

    def buffer_size(self, index: int) -> int:
        """Return how many bytes of a buffer there really are.

        Raises:
            AssetFailure: `unreadable` when it is missing; `unsupported` when it leads elsewhere.
        """
        buffer = self.table("buffers")[index]
        uri = buffer.get("uri")
        if uri is None:
            return self.binary[1] if index == 0 and self.binary else 0
        if is_data(uri):
            return len(uri.partition(",")[2]) * 3 // 4
        path = inside(self.path.parent, str(uri))
        if not path.is_file():
            raise AssetFailure("unreadable", f"its buffer {uri[:120]!r} is missing")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise AssetFailure("too_large", f"its buffer {uri[:120]!r} has {size} bytes")
        return size

    def read_view(self, index: int) -> bytes:
        """Return the bytes of a buffer view that `check_gltf` found in order."""
        view = self.table("bufferViews")[index]
        start, size = int(view.get("byteOffset", 0)), int(view["byteLength"])
        uri = self.table("buffers")[view["buffer"]].get("uri")
        if is_data(uri):
            return decode_data(uri)[start : start + size]
        path = self.path if uri is None else inside(self.path.parent, str(uri))
        with path.open("rb") as file:
            file.seek(start + (self.binary[0] if uri is None and self.binary else 0))
            return file.read(size)


def is_data(uri: object) -> bool:
    """Return whether the content is in the URI itself."""
    return isinstance(uri, str) and uri[:5].lower() == "data:"


def decode_data(uri: str) -> bytes:
    """Return the content of a data URI.

    Raises:
        AssetFailure: `unreadable`.
    """
    try:
        return base64.b64decode(uri.partition(",")[2], validate=False)
    except (binascii.Error, ValueError) as error:
        raise AssetFailure("unreadable", f"a data URI does not decode: {error}") from error


def read_document(path: Path) -> GltfDocument:
    """Return the document of a `.glb` or `.gltf` file.

    Raises:
        AssetFailure: `unreadable`, `unsupported` (another version) or `too_large`.
    """
    if path.suffix.lower() != ".glb":
        size = path.stat().st_size
        if size > MAX_JSON_BYTES + MAX_BYTES // 4:  # room for data URIs
            raise AssetFailure("too_large", f"{size} bytes of JSON")
        return GltfDocument(path, _parse(path.read_bytes()), None)
    with path.open("rb") as file:
        _, version, length, json_length, _ = struct.unpack("<4sIIII", file.read(20))
        if version != 2:
            raise AssetFailure("unsupported", f"GLB version {version}; version 2 is imported")
        if json_length > MAX_JSON_BYTES:
            raise AssetFailure("too_large", f"{json_length} bytes of JSON")
        document = _parse(file.read(json_length))
        start = GLB_HEADER_BYTES + CHUNK_HEADER_BYTES + json_length
        file.seek(start)
        head = file.read(CHUNK_HEADER_BYTES)
    if len(head) < CHUNK_HEADER_BYTES:
        return GltfDocument(path, document, None)
    size, kind = struct.unpack("<II", head)
    start += CHUNK_HEADER_BYTES
    if start + size > length:
        raise AssetFailure("unreadable", "truncated: its binary chunk ends beyond the file")
    return GltfDocument(path, document, (start, size) if kind == BINARY_CHUNK else None)


def _parse(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except RecursionError as error:
        raise AssetFailure("unreadable", "its JSON is nested too deeply") from error
    except ValueError as error:  # also undecodable bytes, and numbers of thousands of digits
        raise AssetFailure("unreadable", f"its JSON does not parse: {error}") from error
    if not isinstance(document, dict):
        raise AssetFailure("unreadable", "its JSON is no glTF document")
    return document
