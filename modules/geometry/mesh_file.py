"""Bytes of mesh files. Everything here is already in the file's own frame."""

import json
import os
import pathlib
import re
import struct
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray

from data_pipeline.contract import UserError

TEXTURE_FORMATS = {"png": ".png", "jpeg": ".jpg"}
"""How textures are encoded, and the suffix of each where it is a file of its own."""

JPEG_QUALITY = 92

_FLOAT, _UNSIGNED_INT = 5126, 5125
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP_TO_EDGE = 9729, 9987, 33071


def to_glb(
    vertices: Float[ndarray, "n 3"],
    normals: Float[ndarray, "n 3"],
    faces: Int[ndarray, "f 3"],
    uv: Float[ndarray, "n 2"],
    texture: UInt8[ndarray, "th tw 3"],
    *,
    texture_format: str = "png",
    extras: dict | None = None,
    node: dict[str, list[float]] | None = None,
    credit: str | None = None,
) -> bytes:
    """Return a binary glTF 2.0 with one mesh and one matte material; equal inputs, equal bytes.

    Args:
        vertices: positions in the node's frame, Y up.
        normals: unit normals, Y up.
        faces: vertex indices, counter-clockwise.
        uv: texture coordinates, v up (glTF's point down: turned here).
        texture: sRGB base colour, row 0 on top.
        texture_format: `png` or `jpeg`.
        extras: extras of the scene.
        node: how the mesh lies in the scene: glTF's `translation` and `scale`, or nothing.
        credit: who is to be named, shown by viewers as the asset's copyright.
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
        encode_texture(texture, texture_format),
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
        "asset": {"version": "2.0", "generator": "Relief"}
        | ({"copyright": credit} if credit else {}),
        "scene": 0,
        "scenes": [scene],
        "nodes": [{"mesh": 0, "name": "relief"} | (node or {})],
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
        "images": [{"bufferView": 4, "mimeType": f"image/{texture_format}", "name": "base_colour"}],
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
    *,
    texture_format: str = "png",
    extras: dict | None = None,
) -> dict[pathlib.Path, bytes]:
    """Return the files of a Wavefront OBJ (Y up, v up): texture, material, and `path` last.

    Extras become a comment, as JSON on one line. Positions have nine digits, and more where the
    mesh is small beside its distance from the origin.
    """
    image = path.with_suffix(TEXTURE_FORMATS[texture_format])
    material = path.with_suffix(".mtl")
    lines = [f"# {json.dumps(extras)}"] if extras else []
    lines += [f"mtllib {material.name}", "o relief"]
    digits = min(9 + int(np.ceil(np.log10(max(_distance_in_extents(vertices), 1.0)))), 17)
    lines += [f"v {x:.{digits}g} {y:.{digits}g} {z:.{digits}g}" for x, y, z in vertices]
    lines += [f"vt {u:.7g} {v:.7g}" for u, v in uv]
    lines += [f"vn {x:.5f} {y:.5f} {z:.5f}" for x, y, z in normals]
    lines += ["usemtl relief"]
    lines += ["f " + " ".join(f"{i}/{i}/{i}" for i in face) for face in (faces + 1).tolist()]
    library = f"newmtl relief\nKd 1 1 1\nKs 0 0 0\nmap_Kd {image.name}\n"
    return {
        image: encode_texture(texture, texture_format),
        material: library.encode(),
        path: ("\n".join(lines) + "\n").encode(),
    }


def to_ply(
    vertices: Float[ndarray, "n 3"],
    normals: Float[ndarray, "n 3"],
    colours: Float[ndarray, "n 3"],
    faces: Int[ndarray, "f 3"] | None = None,
    extras: dict | None = None,
) -> bytes:
    """Return a binary PLY (Z up): normals and sRGB colours per vertex, with or without faces.

    Positions are doubles where the mesh is small beside its distance from the origin, else floats.
    """
    code = np.rint(np.clip(colours, 0.0, 1.0) * 255.0).astype(np.uint8)
    far = _distance_in_extents(vertices) > FLOAT_EXTENTS
    kind = np.float64 if far else np.float32
    columns: dict[str, ndarray] = dict(zip("xyz", vertices.T.astype(kind), strict=True))
    columns |= dict(zip(("nx", "ny", "nz"), normals.T.astype(np.float32), strict=True))
    columns |= dict(zip(("red", "green", "blue"), code.T, strict=True))
    return ply_bytes(columns, faces, extras)


FLOAT_EXTENTS = 2.0
"""Meshes farther from the origin, in their own extents, have doubles: vertices are told apart by a
millionth of the extent (`isosurface.round_apart`), and floats there have steps of a quarter of it.
"""

COMMENT_CHARACTERS = 900


def ply_bytes(
    columns: dict[str, ndarray], faces: Int[ndarray, "f 3"] | None, extras: dict | None
) -> bytes:
    """Return a binary PLY of any properties.

    Args:
        columns: a float32, float64 or uint8 array `(n,)` for each property of the vertices.
        faces: vertex indices; None for a cloud.
        extras: kept as JSON in comments at the end of the header, `COMMENT_CHARACTERS` in each:
            viewers of splats take the third line for the number of points, and others refuse lines
            of 1024 bytes. Joined, the comments are the JSON.
    """
    kinds = {
        "float32": ("<f4", "float"), "float64": ("<f8", "double"), "uint8": ("u1", "uchar"),
    }  # fmt: skip
    described = [(name, *kinds[values.dtype.name]) for name, values in columns.items()]
    rows = np.zeros(
        len(next(iter(columns.values()))), dtype=[(name, code) for name, code, _ in described]
    )
    for name, values in columns.items():
        rows[name] = values
    header = ["ply", "format binary_little_endian 1.0"]
    header += [f"element vertex {len(rows)}"]
    header += [f"property {kind} {name}" for name, _, kind in described]
    content = rows.tobytes()
    if faces is not None:
        cells = np.zeros(len(faces), dtype=[("count", "u1"), ("corner", "<i4", 3)])
        cells["count"], cells["corner"] = 3, faces
        header += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
        content += cells.tobytes()
    text = json.dumps(extras) if extras else ""
    header += [f"comment {part}" for part in re.findall(f".{{1,{COMMENT_CHARACTERS}}}", text)]
    return "\n".join([*header, "end_header\n"]).encode() + content


def _distance_in_extents(vertices: Float[ndarray, "n 3"]) -> float:
    """Return the largest coordinate over the longest side of the box around the vertices."""
    extent = float(np.ptp(vertices, axis=0).max()) if len(vertices) else 0.0
    return float(np.abs(vertices).max()) / extent if extent > 0.0 else 0.0


def encode_texture(texture: UInt8[ndarray, "th tw 3"], texture_format: str) -> bytes:
    """Return an sRGB image as PNG, or as JPEG with its colours at full resolution."""
    options = {
        "png": [],
        "jpeg": [
            *(cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY),
            *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
        ],
    }[texture_format]
    bgr = cv2.cvtColor(texture, cv2.COLOR_RGB2BGR)
    ok, encoded = cv2.imencode(TEXTURE_FORMATS[texture_format], bgr, options)
    if not ok:
        raise ValueError(f"OpenCV could not encode a texture of shape {texture.shape}")
    return encoded.tobytes()


def write_files(files: dict[pathlib.Path, bytes]) -> None:
    """Write files, each of which appears complete or not at all.

    Raises:
        UserError: one cannot be written.
    """
    for path, content in files.items():
        try:
            partial = path.with_name(path.name + ".partial")
            partial.write_bytes(content)
            os.replace(partial, path)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _padded(length: int) -> int:
    """Round a length up to glTF's alignment of four bytes."""
    return (length + 3) // 4 * 4
