"""Find NaN and infinite vertices in the file itself: Blender's importers turn them into zeros.

Covers what can be read without an importer: glTF (but for compressed meshes) and PLY. The other
importers are told not to mend, see `blender.scene`.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.render.checks.gltf_document import read_document
from data_pipeline.render.failures import AssetFailure

FLOAT32 = 5126
"""glTF's name of the component type."""

PLY_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4",
    "float": "f4", "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2",
    "int32": "i4", "uint32": "u4", "float32": "f4", "float64": "f8",
}  # fmt: skip


def check_finite(path: Path) -> None:
    """Raise AssetFailure if the file holds vertices that are NaN or infinite.

    A file too damaged to be read here passes: the importer has its own word for it.
    """
    read = {".glb": _gltf_positions, ".gltf": _gltf_positions, ".ply": _ply_positions}.get(
        path.suffix.lower()
    )
    if read is None:
        return
    try:
        num_bad = sum(int((~np.isfinite(rows)).any(axis=1).sum()) for rows in read(path))
    except (ValueError, KeyError, IndexError, TypeError, struct.error):
        return
    if num_bad:
        raise AssetFailure("nonfinite", f"{num_bad} vertices are NaN or infinite")


def _gltf_positions(path: Path) -> Iterator[NDArray[Any]]:
    """Yield the float positions of every primitive, `(n, 3)` each."""
    document = read_document(path)
    accessors, views = document.table("accessors"), document.table("bufferViews")
    used = {
        primitive["attributes"]["POSITION"]
        for mesh in document.table("meshes")
        for primitive in mesh["primitives"]
    }
    for accessor in (accessors[index] for index in sorted(used)):
        if accessor["componentType"] != FLOAT32 or "bufferView" not in accessor:
            continue  # quantised (always finite), or compressed
        content = document.read_view(accessor["bufferView"])
        stride = views[accessor["bufferView"]].get("byteStride", 12)
        shape, start = (accessor["count"], 3), accessor.get("byteOffset", 0)
        yield np.ndarray(shape, "<f4", content, start, (stride, 4))


def _ply_positions(path: Path) -> list[NDArray[Any]]:
    """Return the positions of a PLY whose first element is `vertex`, without lists."""
    head, _, body = path.read_bytes().partition(b"end_header\n")
    lines = [line.split() for line in head.decode("ascii").splitlines()]
    kind = next(line[1] for line in lines if line[0] == "format")
    elements = [index for index, line in enumerate(lines) if line and line[0] == "element"]
    _, name, count = lines[elements[0]]
    if name != "vertex":
        return []
    end = elements[1] if len(elements) > 1 else len(lines)
    properties = [line[1:] for line in lines[elements[0] : end] if line[0] == "property"]
    names = [prop[-1] for prop in properties]
    columns = [names.index(axis) for axis in "xyz"]
    if kind == "ascii":
        rows = np.loadtxt(body.splitlines()[: int(count)], usecols=columns, ndmin=2)
        return [rows]
    order = "<" if kind == "binary_little_endian" else ">"
    dtype = np.dtype([(prop[1], order + PLY_TYPES[prop[0]]) for prop in properties])
    vertices = np.frombuffer(body, dtype, int(count))
    return [np.stack([vertices[axis].astype(np.float64) for axis in "xyz"], axis=1)]
