"""GLB files made by code, for tests: one primitive per part, nothing that the test does not say."""

import json
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


class GlbBuilder:
    """Collects primitives and writes them as one GLB (Y up, as glTF wants)."""

    def __init__(self) -> None:
        self._binary = b""
        self.document: dict[str, Any] = {
            "asset": {"version": "2.0"},
            "scene": 0,
            "scenes": [{"nodes": []}],
            "nodes": [],
            "meshes": [],
            "accessors": [],
            "bufferViews": [],
        }

    def add_image(self, rgba: NDArray[np.uint8]) -> int:
        """Add a PNG texture, `(h, w, 3 or 4)` in RGB(A), and return the texture's index."""
        code = cv2.COLOR_RGB2BGR if rgba.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
        ok, png = cv2.imencode(".png", cv2.cvtColor(rgba, code))
        assert ok
        images = self.document.setdefault("images", [])
        images.append({"bufferView": self._view(png.tobytes()), "mimeType": "image/png"})
        textures = self.document.setdefault("textures", [])
        textures.append({"source": len(images) - 1})
        return len(textures) - 1

    def add_material(self, **material: Any) -> int:
        """Add a material in glTF's own words and return its index."""
        materials = self.document.setdefault("materials", [])
        materials.append(material)
        return len(materials) - 1

    def add_mesh(
        self,
        triangles: NDArray[np.floating],
        *,
        material: int | None = None,
        uv: NDArray[np.floating] | None = None,
        normals: NDArray[np.floating] | None = None,
        colours: NDArray[np.floating] | None = None,
        node: dict[str, Any] | None = None,
    ) -> None:
        """Add one mesh under one node.

        Args:
            triangles: `(f, 3, 3)`, Y up.
            material: index of a material.
            uv: `(f, 3, 2)`, glTF's: (0, 0) is the image's top left.
            normals: `(f, 3, 3)`.
            colours: `(f, 3, 4)`, linear.
            node: keys of the node, such as a translation.
        """
        attributes = {"POSITION": self.add_values(triangles, "VEC3", bounds=True)}
        for name, values, kind in (
            ("TEXCOORD_0", uv, "VEC2"),
            ("NORMAL", normals, "VEC3"),
            ("COLOR_0", colours, "VEC4"),
        ):
            if values is not None:
                attributes[name] = self.add_values(values, kind)
        primitive: dict[str, Any] = {"attributes": attributes}
        if material is not None:
            primitive["material"] = material
        self.document["meshes"].append({"primitives": [primitive]})
        self.document["nodes"].append({"mesh": len(self.document["meshes"]) - 1} | (node or {}))
        self.document["scenes"][0]["nodes"].append(len(self.document["nodes"]) - 1)

    def write(self, path: Path) -> Path:
        """Write the file and return its path."""
        self.document["buffers"] = [{"byteLength": len(self._binary)}]
        text = json.dumps(self.document).encode()
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
        chunks += struct.pack("<II", len(self._binary), 0x004E4942) + self._binary
        path.write_bytes(struct.pack("<III", 0x46546C67, 2, 12 + len(chunks)) + chunks)
        return path

    def _view(self, content: bytes) -> int:
        views = self.document["bufferViews"]
        views.append({"buffer": 0, "byteOffset": len(self._binary), "byteLength": len(content)})
        self._binary += content + b"\0" * (-len(content) % 4)
        return len(views) - 1

    def add_values(
        self, values: NDArray[Any], kind: str, dtype: type = np.float32, *, bounds: bool = False
    ) -> int:
        """Add an accessor of glTF's `kind` (`SCALAR`, `VEC3`, `MAT4`, ...) and return its index."""
        rows = np.ascontiguousarray(values, dtype=dtype).reshape(-1, values.shape[-1])
        accessor = {
            "bufferView": self._view(rows.tobytes()),
            "componentType": {np.float32: 5126, np.uint8: 5121}[dtype],
            "count": len(rows),
            "type": kind,
        }
        if bounds:
            accessor |= {"min": np.nanmin(rows, 0).tolist(), "max": np.nanmax(rows, 0).tolist()}
        self.document["accessors"].append(accessor)
        return len(self.document["accessors"]) - 1


def y_up(points: NDArray[np.floating]) -> NDArray[np.floating]:
    """Turn world points (Z up) into glTF's frame (Y up)."""
    return np.stack([points[..., 0], points[..., 2], -points[..., 1]], axis=-1)


def uv_sphere(radius: float, segments: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return triangles `(f, 3, 3)` of a sphere about the origin and its exact normals."""
    angle, height = np.meshgrid(
        np.linspace(0, 2 * np.pi, 2 * segments + 1), np.linspace(0, np.pi, segments + 1)
    )
    ring = np.sin(height)
    grid = np.stack([np.cos(angle) * ring, np.sin(angle) * ring, np.cos(height)], axis=-1)
    a, b, c, d = grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]
    normals = np.concatenate([np.stack([a, b, c], 2), np.stack([a, c, d], 2)]).reshape(-1, 3, 3)
    cross = np.cross(normals[:, 1] - normals[:, 0], normals[:, 2] - normals[:, 0])
    normals = normals[np.linalg.norm(cross, axis=1) > 1e-9]
    return radius * normals, normals
