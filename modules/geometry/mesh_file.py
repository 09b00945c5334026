"""Bytes of mesh files. Everything here is already in the file's own frame."""

import json
import pathlib
import struct
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray

_FLOAT, _UNSIGNED_INT = 5126, 5125
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP_TO_EDGE = 9729, 9987, 33071


def to_glb(
    vertices: Float[ndarray, "n 3"],
    normals: Float[ndarray, "n 3"],
    faces: Int[ndarray, "f 3"],
    uv: Float[ndarray, "n 2"],
    texture: UInt8[ndarray, "th tw 3"],
    extras: dict | None,
    node: dict[str, list[float]],
) -> bytes:
    """Return a binary glTF 2.0 with one mesh and one matte material; equal inputs, equal bytes.

    Args:
        vertices: positions in the node's frame, Y up.
        normals: unit normals, Y up.
        faces: vertex indices, counter-clockwise.
        uv: texture coordinates, v up (glTF's point down: turned here).
        texture: sRGB base colour, row 0 on top.
        extras: extras of the scene.
        node: how the mesh lies in the scene: glTF's `translation` and `scale`, or nothing.
    """
    positions = vertices.astype(np.float32)
    flipped = np.stack([uv[:, 0], 1.0 - uv[:, 1]], axis=1).astype(np.float32)
    # float32 lengths must stay within the validator's tolerance, hence the second normalisation.
    directions = normals.astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    blocks = [
        positions.tobytes(),
        directions.astype(np.float32).tobytes(),
        flipped.tobytes(),
        faces.astype(np.uint32).tobytes(),
        _png(texture),
    ]
    views: list[dict[str, Any]] = []
    start = 0
    for block in blocks:
        views.append({"buffer": 0, "byteOffset": start, "byteLength": len(block)})
        start += _padded(len(block))
    for view in views[:3]:
        view["target"] = _ARRAY_BUFFER
    views[3]["target"] = _ELEMENT_ARRAY_BUFFER

    def accessor(view: int, kind: str, count: int, component: int = _FLOAT) -> dict[str, Any]:
        return {"bufferView": view, "componentType": component, "count": count, "type": kind}

    scene: dict[str, Any] = {"nodes": [0]}
    if extras:
        scene["extras"] = extras
    document = {
        "asset": {"version": "2.0", "generator": "Relief"},
        "scene": 0,
        "scenes": [scene],
        "nodes": [{"mesh": 0, "name": "relief"} | node],
        "meshes": [
            {
                "name": "relief",
                "primitives": [
                    {
                        "attributes": {"POSITION": 0, "NORMAL": 1, "TEXCOORD_0": 2},
                        "indices": 3,
                        "material": 0,
                    }
                ],
            }
        ],
        "materials": [
            {
                "name": "relief",
                "pbrMetallicRoughness": {
                    "baseColorTexture": {"index": 0},
                    "metallicFactor": 0.0,
                    "roughnessFactor": 1.0,
                },
            }
        ],
        "textures": [{"source": 0, "sampler": 0}],
        "images": [{"bufferView": 4, "mimeType": "image/png", "name": "base_colour"}],
        "samplers": [
            {
                "magFilter": _LINEAR,
                "minFilter": _LINEAR_MIPMAP_LINEAR,
                "wrapS": _CLAMP_TO_EDGE,
                "wrapT": _CLAMP_TO_EDGE,
            }
        ],
        "accessors": [
            accessor(0, "VEC3", len(positions))
            | {"min": positions.min(axis=0).tolist(), "max": positions.max(axis=0).tolist()},
            accessor(1, "VEC3", len(positions)),
            accessor(2, "VEC2", len(positions)),
            accessor(3, "SCALAR", faces.size, _UNSIGNED_INT),
        ],
        "bufferViews": views,
        "buffers": [{"byteLength": start}],
    }
    binary = b"".join(block.ljust(_padded(len(block)), b"\0") for block in blocks)
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    text = text.ljust(_padded(len(text)), b" ")
    header = struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(binary))
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    return header + chunks + struct.pack("<I4s", len(binary), b"BIN\0") + binary


def to_obj(
    path: pathlib.Path,
    vertices: Float[ndarray, "n 3"],
    normals: Float[ndarray, "n 3"],
    faces: Int[ndarray, "f 3"],
    uv: Float[ndarray, "n 2"],
    texture: UInt8[ndarray, "th tw 3"],
) -> dict[pathlib.Path, bytes]:
    """Return the files of a Wavefront OBJ (Y up, v up): texture, material, and `path` last."""
    image, material = path.with_suffix(".png"), path.with_suffix(".mtl")
    lines = [f"mtllib {material.name}", "o relief"]
    lines += [f"v {x:.9g} {y:.9g} {z:.9g}" for x, y, z in vertices]
    lines += [f"vt {u:.7g} {v:.7g}" for u, v in uv]
    lines += [f"vn {x:.5f} {y:.5f} {z:.5f}" for x, y, z in normals]
    lines += ["usemtl relief"]
    lines += ["f " + " ".join(f"{i}/{i}/{i}" for i in face) for face in (faces + 1).tolist()]
    library = f"newmtl relief\nKd 1 1 1\nKs 0 0 0\nmap_Kd {image.name}\n"
    return {
        image: _png(texture),
        material: library.encode(),
        path: ("\n".join(lines) + "\n").encode(),
    }


def to_ply(
    vertices: Float[ndarray, "n 3"],
    normals: Float[ndarray, "n 3"],
    faces: Int[ndarray, "f 3"],
    colours: Float[ndarray, "n 3"],
) -> bytes:
    """Return a binary PLY (Z up) with normals and sRGB colours per vertex."""
    rows = np.zeros(
        len(vertices), dtype=[("position", "<f4", 3), ("normal", "<f4", 3), ("colour", "u1", 3)]
    )
    rows["position"], rows["normal"] = vertices, normals
    rows["colour"] = np.rint(np.clip(colours, 0.0, 1.0) * 255.0)
    cells = np.zeros(len(faces), dtype=[("count", "u1"), ("corner", "<i4", 3)])
    cells["count"], cells["corner"] = 3, faces
    names = [f"property float {name}" for name in ("x", "y", "z", "nx", "ny", "nz")]
    names += [f"property uchar {name}" for name in ("red", "green", "blue")]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}", *names]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    return ("\n".join(header) + "\n").encode() + rows.tobytes() + cells.tobytes()


def _png(texture: UInt8[ndarray, "th tw 3"]) -> bytes:
    ok, png = cv2.imencode(".png", cv2.cvtColor(texture, cv2.COLOR_RGB2BGR))
    if not ok:
        raise ValueError(f"OpenCV could not encode a texture of shape {texture.shape}")
    return png.tobytes()


def _padded(length: int) -> int:
    """Round a length up to glTF's alignment of four bytes."""
    return (length + 3) // 4 * 4
