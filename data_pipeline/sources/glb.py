"""Sealed GLB files: equal content gives equal bytes, and a damaged file is told from a whole one.

trimesh could write these files too, but its bytes change with its version, and a file of its own
cannot be told from one that was cut short or altered.
"""

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from data_pipeline.codec import encode_views
from data_pipeline.contract import srgb_to_linear
from data_pipeline.sources.surfaces import Surface

_JSON_CHUNK, _BIN_CHUNK = 0x4E4F534A, 0x004E4942
_FLOAT, _USHORT, _UINT = 5126, 5123, 5125
_ARRAY_BUFFER, _ELEMENT_BUFFER = 34962, 34963
_LINEAR, _LINEAR_MIPMAP, _REPEAT = 9729, 9987, 10497


@dataclass(frozen=True)
class Coat:
    """A surface and its colour.

    Args:
        name: of the material.
        surface: Z up, front at -Y.
        colour: one sRGB colour, or a texture (top row first) that repeats with every unit of uv.
    """

    name: str
    surface: Surface
    colour: tuple[int, int, int] | UInt8[ndarray, "h w 3"]


def encode_glb(name: str, coats: Sequence[Coat], extras: Mapping[str, str]) -> bytes:
    """Return a GLB of one mesh with one primitive per coat, turned from Z up to glTF's Y up.

    Args:
        name: of the node and the mesh.
        coats: what the mesh consists of.
        extras: kept in `asset.extras`; `read_extras` gives them back.
    """
    writer = _Writer()
    primitives = [writer.add_coat(coat) for coat in coats]
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "Relief", "extras": dict(extras) | {"sha256": ""}},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": name, "mesh": 0}],
        "meshes": [{"name": name, "primitives": primitives}],
    } | writer.sections()
    binary = bytes(writer.binary)
    document["asset"]["extras"]["sha256"] = _seal(document, binary)
    text = _dump(document)
    text += b" " * (-len(text) % 4)
    length = 12 + 8 + len(text) + 8 + len(binary)
    return b"".join(
        [
            struct.pack("<4sIIII", b"glTF", 2, length, len(text), _JSON_CHUNK),
            text,
            struct.pack("<II", len(binary), _BIN_CHUNK),
            binary,
        ]
    )


def read_extras(glb: bytes) -> dict[str, str] | None:
    """Return the extras of a file of `encode_glb`; None if it is damaged or of another kind."""
    try:
        magic, version, length, size, kind = struct.unpack_from("<4sIIII", glb)
        document = json.loads(glb[20 : 20 + size])
        binary_size, binary_kind = struct.unpack_from("<II", glb, 20 + size)
        extras = dict(document["asset"]["extras"])
        seal = document["asset"]["extras"].pop("sha256")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        return None
    if (magic, version, kind, binary_kind) != (b"glTF", 2, _JSON_CHUNK, _BIN_CHUNK):
        return None
    if length != len(glb) or binary_size != length - size - 28:
        return None
    document["asset"]["extras"]["sha256"] = ""
    if seal != _seal(document, glb[28 + size :]):
        return None
    del extras["sha256"]
    return extras


def _dump(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=True).encode()


def _seal(document: dict[str, Any], binary: bytes) -> str:
    """Return the digest of everything in the file but the digest itself."""
    return hashlib.sha256(_dump(document) + binary).hexdigest()


class _Writer:
    """Gathers the binary chunk and the tables that point into it."""

    def __init__(self) -> None:
        self.binary = bytearray()
        self.views: list[dict[str, int]] = []
        self.accessors: list[dict[str, Any]] = []
        self.materials: list[dict[str, Any]] = []
        self.images: list[dict[str, Any]] = []

    def sections(self) -> dict[str, Any]:
        """Return the tables of the document."""
        tables = {
            "materials": self.materials,
            "accessors": self.accessors,
            "bufferViews": self.views,
            "buffers": [{"byteLength": len(self.binary)}],
        }
        if self.images:
            tables["images"] = self.images
            tables["samplers"] = [
                {
                    "magFilter": _LINEAR,
                    "minFilter": _LINEAR_MIPMAP,
                    "wrapS": _REPEAT,
                    "wrapT": _REPEAT,
                }
            ]
            tables["textures"] = [{"source": i, "sampler": 0} for i in range(len(self.images))]
        return tables

    def add_coat(self, coat: Coat) -> dict[str, Any]:
        """Store a coat; return its primitive."""
        textured = isinstance(coat.colour, ndarray)
        rows, indices = _weld(coat.surface, textured)
        attributes = {
            "POSITION": self._add_accessor(rows[:, :3], "VEC3", _ARRAY_BUFFER),
            "NORMAL": self._add_accessor(rows[:, 3:6], "VEC3", _ARRAY_BUFFER),
        }
        if textured:
            attributes["TEXCOORD_0"] = self._add_accessor(rows[:, 6:], "VEC2", _ARRAY_BUFFER)
        self.accessors[attributes["POSITION"]] |= {
            "min": rows[:, :3].min(axis=0).tolist(),
            "max": rows[:, :3].max(axis=0).tolist(),
        }
        return {
            "attributes": attributes,
            "indices": self._add_accessor(indices, "SCALAR", _ELEMENT_BUFFER),
            "material": self._add_material(coat),
        }

    def _add_accessor(self, array: ndarray, shape: str, target: int) -> int:
        kind = {"float32": _FLOAT, "uint16": _USHORT, "uint32": _UINT}[array.dtype.name]
        view = self._add_view(np.ascontiguousarray(array).tobytes())
        self.views[view]["target"] = target
        self.accessors.append(
            {"bufferView": view, "componentType": kind, "count": len(array), "type": shape}
        )
        return len(self.accessors) - 1

    def _add_view(self, data: bytes) -> int:
        self.views.append({"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(data)})
        self.binary += data + bytes(-len(data) % 4)
        return len(self.views) - 1

    def _add_material(self, coat: Coat) -> int:
        surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 0.8}
        if isinstance(coat.colour, ndarray):
            png = encode_views(coat.colour[None])
            self.images.append({"bufferView": self._add_view(png), "mimeType": "image/png"})
            surface["baseColorTexture"] = {"index": len(self.images) - 1}
        else:
            linear = np.round(srgb_to_linear(np.array(coat.colour) / 255.0), 6)
            surface["baseColorFactor"] = [*linear.tolist(), 1.0]
        self.materials.append({"name": coat.name, "pbrMetallicRoughness": surface})
        return len(self.materials) - 1


def _weld(surface: Surface, textured: bool) -> tuple[ndarray, ndarray]:
    """Return vertex rows (position, normal, uv; float32, Y up, v down) and triangle corner indices.

    Values are rounded to 1e-6: machines whose sine differs in its last bit write the same bytes.
    """
    parts = [surface.position.reshape(-1, 3), surface.normal.reshape(-1, 3)]
    parts = [np.column_stack([part[:, 0], part[:, 2], -part[:, 1]]) for part in parts]
    if textured:
        uv = surface.uv.reshape(-1, 2)
        parts.append(np.column_stack([uv[:, 0], 1.0 - uv[:, 1]]))
    rows = np.round(np.concatenate(parts, axis=1), 6).astype(np.float32) + np.float32(0.0)
    keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))[:, 0]
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    kind = np.uint16 if len(first) < 65535 else np.uint32
    return rows[first], inverse.astype(kind)
