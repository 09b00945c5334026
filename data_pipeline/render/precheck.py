"""What can be told about a file without Blender: missing, empty, huge, truncated, unsupported."""

import json
import struct
from pathlib import Path
from typing import Any

from data_pipeline.render.failures import AssetFailure

SUFFIXES = frozenset(
    {
        ".glb",
        ".gltf",
        ".obj",
        ".fbx",
        ".ply",
        ".stl",
        ".usd",
        ".usda",
        ".usdc",
        ".usdz",
        ".dae",
        ".blend",
    }
)
"""Files that the Blender workers import."""

MAX_BYTES = 1_000_000_000
"""Larger files would not fit beside others in a worker's memory."""

REFUSED_EXTENSIONS = frozenset({"EXT_meshopt_compression", "KHR_texture_basisu"})
"""glTF extensions that Blender 4.5 cannot read."""

GLB_MAGIC = 0x46546C67
JSON_CHUNK = 0x4E4F534A


def check_file(path: Path) -> None:
    """Raise AssetFailure if the file cannot become a sample; passing promises nothing yet."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise AssetFailure("unsupported", f"files named *{suffix} are not imported")
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise AssetFailure("unreadable", "not a file")
        if size == 0:
            raise AssetFailure("unreadable", "the file is empty (0 bytes)")
        if size > MAX_BYTES:
            raise AssetFailure("too_large", f"{size} bytes; at most {MAX_BYTES} are allowed")
        if suffix == ".glb":
            _check_gltf(_read_glb_json(path, size))
        elif suffix == ".gltf":
            _check_gltf(_parse(path.read_bytes()))
    except OSError as error:
        raise AssetFailure("unreadable", error.strerror or type(error).__name__) from error


def _read_glb_json(path: Path, size: int) -> dict[str, Any]:
    with path.open("rb") as file:
        header = file.read(20)
        if len(header) < 20 or struct.unpack_from("<I", header)[0] != GLB_MAGIC:
            raise AssetFailure("unreadable", "not a GLB file: it does not begin with 'glTF'")
        _, version, length, json_length, kind = struct.unpack("<IIIII", header)
        if version != 2:
            raise AssetFailure("unsupported", f"GLB version {version}; version 2 is imported")
        if length > size:
            raise AssetFailure("unreadable", f"truncated: {size} of {length} bytes")
        if kind != JSON_CHUNK or json_length > length:
            raise AssetFailure("unreadable", "the GLB's first chunk is not its JSON")
        return _parse(file.read(json_length))


def _parse(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except ValueError as error:  # also undecodable bytes
        raise AssetFailure("unreadable", f"its JSON does not parse: {error}") from error
    if not isinstance(document, dict):
        raise AssetFailure("unreadable", "its JSON is no glTF document")
    return document


def _check_gltf(document: dict[str, Any]) -> None:
    required = document.get("extensionsRequired", ())
    refused = sorted(REFUSED_EXTENSIONS.intersection(required))
    if refused:
        raise AssetFailure(
            "unsupported", f"requires {', '.join(refused)}, which Blender cannot read"
        )
    if not document.get("meshes"):
        raise AssetFailure("empty", "the file holds no mesh")
