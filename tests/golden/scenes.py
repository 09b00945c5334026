"""Golden scenes: what is rendered, and what must come out, written out from docs/conventions.md."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from golden.glb import GlbBuilder, uv_sphere, y_up
from numpy.typing import NDArray

from data_pipeline.codec import decode_views
from data_pipeline.contract import Camera, check_meta, decode_coord, decode_normal

RESOLUTION_PX = 256
ORTHO_SCALE = 1.1

# View: letter, colour, the direction in which its camera stands, image right, image up.
FACES = {
    "az000": ("F", (200, 40, 40), (0, -1, 0), (1, 0, 0), (0, 0, 1)),
    "az090": ("R", (40, 160, 60), (1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "az180": ("B", (50, 80, 210), (0, 1, 0), (-1, 0, 0), (0, 0, 1)),
    "az270": ("L", (230, 200, 40), (-1, 0, 0), (0, -1, 0), (0, 0, 1)),
    "top": ("T", (170, 60, 190), (0, 0, 1), (1, 0, 0), (0, 1, 0)),
    "bottom": ("G", (240, 240, 240), (0, 0, -1), (1, 0, 0), (0, -1, 0)),
}


@dataclass(frozen=True)
class Sample:
    meta: dict
    cameras: list[Camera]
    rgb: NDArray[np.uint8]
    normal: NDArray[np.float32]
    coord: NDArray[np.float32]
    hit: NDArray[np.bool_]
    geometry: dict[str, NDArray]

    def view(self, name: str) -> int:
        return [camera.name for camera in self.cameras].index(name)


def read_sample(members: dict[str, bytes]) -> Sample:
    meta = json.loads(members["meta.json"])
    check_meta(meta)
    cameras = [
        Camera(**camera | {"camera_to_world": tuple(map(tuple, camera["camera_to_world"]))})
        for camera in meta["cameras"]
    ]

    def views(name: str) -> NDArray:
        return decode_views(members[name], len(cameras))

    with np.load(io.BytesIO(members["geometry.npz"])) as arrays:
        geometry = dict(arrays)
    return Sample(
        meta, cameras, views("rgb.png"), decode_normal(views("normal.png")),
        decode_coord(views("coord.png")), views("hit.png") > 0, geometry,
    )  # fmt: skip


def letter_image(letter: str, colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return a 256 px picture of a black letter, upright and off centre, on `colour`."""
    image = np.empty((256, 256, 3), dtype=np.uint8)
    image[:] = colour
    cv2.putText(image, letter, (40, 200), cv2.FONT_HERSHEY_SIMPLEX, 6.0, (0, 0, 0), 24)
    image[:24, -24:] = (255, 255, 255)  # a mark at the top right: no letter is then symmetric
    return image


def quad(centre, right, up) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return two triangles and glTF's texture coordinates: the image upright as seen."""
    centre, right, up = (np.asarray(v, dtype=np.float64) for v in (centre, right, up))
    corners = {(x, y): centre + x * right + y * up for x in (-1, 1) for y in (-1, 1)}
    order = [(-1, -1), (1, -1), (1, 1), (-1, -1), (1, 1), (-1, 1)]
    uv = [((x + 1) / 2, (1 - y) / 2) for x, y in order]
    triangles = np.array([corners[place] for place in order]).reshape(2, 3, 3)
    return triangles, np.array(uv).reshape(2, 3, 2)


def write_lettered_cube(path: Path) -> None:
    builder = GlbBuilder()
    for letter, colour, out, right, up in FACES.values():
        image = builder.add_image(letter_image(letter, colour))
        material = builder.add_material(
            pbrMetallicRoughness={"baseColorTexture": {"index": image}, "metallicFactor": 0.3}
        )
        triangles, uv = quad(3.0 * np.array(out), 3.0 * np.array(right), 3.0 * np.array(up))
        # Off the origin and six units wide: rendering must bring it into the unit cube.
        builder.add_mesh(y_up(triangles + np.array((5.0, -2.0, 9.0))), uv=uv, material=material)
    builder.write(path)


def write_sphere(path: Path) -> None:
    triangles, normals = uv_sphere(1.0, 64)
    builder = GlbBuilder()
    builder.add_mesh(y_up(triangles), normals=y_up(normals))
    builder.write(path)


SKEW = np.array([[1.0, 0.3, 0.0], [0.0, 0.7, 0.25], [0.1, 0.0, 0.5]])


def write_skewed(path: Path) -> None:
    """A skewed ellipsoid and a small ball beside it: no symmetry is left."""
    triangles, normals = uv_sphere(1.0, 64)
    builder = GlbBuilder()
    skewed = normals @ np.linalg.inv(SKEW)
    skewed /= np.linalg.norm(skewed, axis=-1, keepdims=True)
    builder.add_mesh(y_up(triangles @ SKEW.T), normals=y_up(skewed))
    builder.add_mesh(y_up(0.4 * triangles + (0.9, -0.6, 0.7)), normals=y_up(normals))
    builder.write(path)


def checkered_alpha() -> NDArray[np.uint8]:
    """A green picture whose left half is clear."""
    image = np.zeros((64, 64, 4), dtype=np.uint8)
    image[:] = (30, 150, 70, 255)
    image[:, :32, 3] = 0
    return image


def flat(colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.full((8, 8, 3), colour, dtype=np.uint8)


def linear(*srgb: int) -> list[float]:
    value = np.array(srgb) / 255.0
    return [*np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4), 1.0]


# Panels side by side, facing az000: name and sRGB to be read back.
PANELS = {
    "texel": (200, 40, 40),
    "metal": (180, 120, 60),
    "mask": (30, 150, 70),
    "vertex": (60, 90, 200),
    "unlit": (120, 200, 220),
    "product": (0, 0, 0),  # computed in the test
    "none": (128, 128, 128),
    "glowing": (90, 20, 110),
    "glass": (10, 130, 140),
}


def write_panels(path: Path) -> None:
    builder = GlbBuilder()

    def textured(colour, **more):
        texture = {"index": builder.add_image(flat(colour))}
        return {"baseColorTexture": texture, **more}

    materials = {
        "texel": {"pbrMetallicRoughness": textured(PANELS["texel"])},
        "metal": {
            "pbrMetallicRoughness": {
                "baseColorFactor": linear(*PANELS["metal"]),
                "metallicFactor": 1.0,
                "roughnessFactor": 0.0,
            }
        },
        "mask": {
            "pbrMetallicRoughness": {
                "baseColorTexture": {"index": builder.add_image(checkered_alpha())}
            },
            "alphaMode": "MASK",
            "alphaCutoff": 0.4,
        },
        "vertex": {"pbrMetallicRoughness": {"metallicFactor": 0.0}},
        "unlit": {
            "pbrMetallicRoughness": textured(PANELS["unlit"]),
            "extensions": {"KHR_materials_unlit": {}},
        },
        "product": {
            "pbrMetallicRoughness": textured((200, 100, 250), baseColorFactor=[0.5, 0.25, 1, 1])
        },
        "glowing": {
            "pbrMetallicRoughness": {"baseColorFactor": linear(*PANELS["glowing"])},
            "emissiveFactor": [1.0, 1.0, 1.0],
        },
        "glass": {
            "pbrMetallicRoughness": {"baseColorFactor": [*linear(*PANELS["glass"])[:3], 0.25]},
            "alphaMode": "BLEND",
        },
    }
    builder.document["extensionsUsed"] = ["KHR_materials_unlit"]
    for place, name in enumerate(PANELS):
        material = builder.add_material(**materials[name]) if name in materials else None
        triangles, uv = quad((place, 0, 0), (0.4, 0, 0), (0, 0, 0.4))
        colours = np.tile(linear(*PANELS["vertex"]), (2, 3, 1)) if name == "vertex" else None
        builder.add_mesh(y_up(triangles), uv=uv, material=material, colours=colours)
    builder.write(path)


WRITERS = {
    "cube": write_lettered_cube,
    "sphere": write_sphere,
    "skewed": write_skewed,
    "panels": write_panels,
}


def panel_pixels(sample: Sample) -> dict[str, tuple[int, slice, slice]]:
    """Return for every panel the rows and columns of az000 within its right half."""
    view = sample.view("az000")
    camera = sample.cameras[view]
    boxes = {}
    for place, name in enumerate(PANELS):
        corners = np.array([[place + 0.08, 0, -0.25], [place + 0.3, 0, 0.25]])
        world = corners * sample.meta["scale"] + sample.meta["offset"]
        (left, bottom), (right, top) = camera.project(world, RESOLUTION_PX)[0]
        rows, columns = slice(int(np.ceil(top)), int(bottom)), slice(int(np.ceil(left)), int(right))
        assert rows.start < rows.stop
        assert columns.start < columns.stop
        boxes[name] = (view, rows, columns)
    return boxes
