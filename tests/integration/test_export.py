"""Files of one result: what they hold beside the shape, and the Khronos validator on GLBs."""

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from khronos import khronos_errors
from PIL import Image

from data_pipeline.contract import SourceFrame, UserError, view_layout
from modules.geometry.mesh import load_mesh
from modules.pipelines.export import ExportOptions, export
from modules.pipelines.reconstruction import Reconstructor
from modules.pipelines.text_to_mesh import check_outputs

CAMERAS = view_layout("ortho6")
FRAME = SourceFrame(scale=0.25, offset=(0.0, 0.1, 0.0))
ABOUT = {"uid": "ball", "author": "A. Maker", "licence": "CC-BY-4.0"}


def ball_images(side: int = 32) -> torch.Tensor:
    """Return 2.5D images of a ball of radius 0.4, coloured by position."""
    images = np.ones((3, 6, 3, side, side), np.float32)
    images[1:] = 0.0
    for view, camera in enumerate(CAMERAS):
        origin, toward = camera.rays(side)
        along = -(origin * toward).sum(axis=-1)
        nearest = origin + toward * along[..., None]
        half = 0.16 - (nearest**2).sum(axis=-1)
        hit = half > 0
        point = nearest - toward * np.sqrt(np.maximum(half, 0.0))[..., None]
        for index, values in enumerate((point * 2.0, point / 0.4, point * 2.0)):
            images[index, view][:, hit] = values[hit].T
    return torch.from_numpy(images)


def write(path: Path, **options: Any) -> str:
    chosen = ExportOptions(grid=32, texture_px=128, **options)
    method = Reconstructor.classical(num_faces=chosen.faces)
    return export(ball_images(), CAMERAS, None, path, method, chosen, ABOUT, FRAME)


def glb_parts(path: Path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    length = struct.unpack_from("<I", content, 12)[0]
    return json.loads(content[20 : 20 + length]), content[28 + length :]


@pytest.mark.parametrize("texture_format", ["png", "jpeg"])
def test_a_glb_tells_where_it_comes_from_and_is_valid(tmp_path: Path, texture_format: str):
    path = tmp_path / "ball.glb"
    said = write(path, texture_format=texture_format, faces=1000)
    document, binary = glb_parts(path)
    about = document["scenes"][0]["extras"]["relief"]
    assert {key: about[key] for key in ABOUT} == ABOUT
    assert (about["scale"], about["offset"]) == (0.25, [0.0, 0.1, 0.0])
    assert [each["name"] for each in about["cameras"]] == [camera.name for camera in CAMERAS]
    assert about["generator"].startswith("Relief ")
    assert document["asset"]["copyright"] == "A. Maker, CC-BY-4.0"
    report = about["mesh"]
    assert report["faces"] == len(load_mesh(path).faces) <= 1000
    assert report["watertight"]
    assert report["manifold"]
    assert report["components"] == 1
    np.testing.assert_allclose(report["size"], [3.2] * 3, rtol=0.03)
    assert 0.2 < report["texture_use"] < 1.0
    assert "1 component, watertight, manifold, no self-intersecting faces, 3.2" in said
    view = document["bufferViews"][document["images"][0]["bufferView"]]
    image = Image.open(io.BytesIO(binary[view["byteOffset"] :][: view["byteLength"]]))
    assert image.format == texture_format.upper()
    assert document["images"][0]["mimeType"] == f"image/{texture_format}"
    assert khronos_errors(path) == {"ball.glb": []}


def test_a_jpeg_texture_is_smaller_and_looks_the_same(tmp_path: Path):
    write(tmp_path / "png.glb")
    write(tmp_path / "jpeg.glb", texture_format="jpeg")
    sizes = [(tmp_path / name).stat().st_size for name in ("png.glb", "jpeg.glb")]
    assert sizes[1] < sizes[0]
    exact, lossy = (load_mesh(tmp_path / name) for name in ("png.glb", "jpeg.glb"))
    face, middle = np.arange(len(exact.faces)), np.full((len(exact.faces), 3), 1 / 3)
    error = exact.colours_at(face, middle) - lossy.colours_at(face, middle)
    assert np.abs(error).mean() < 0.01


def test_an_obj_takes_its_texture_along_and_keeps_the_provenance(tmp_path: Path):
    write(tmp_path / "ball.obj", texture_format="jpeg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ball.jpg", "ball.mtl", "ball.obj"]
    first = (tmp_path / "ball.obj").read_text().splitlines()[0]
    assert json.loads(first.removeprefix("# "))["relief"]["uid"] == "ball"
    colours = load_mesh(tmp_path / "ball.obj")
    face = np.arange(len(colours.faces))
    centre = FRAME.to_world(colours.vertices[colours.faces].mean(axis=1))
    seen = colours.colours_at(face, np.full((len(face), 3), 1 / 3))
    assert np.abs(seen - (centre + 0.5)).mean() < 0.03


@pytest.mark.parametrize("form", ["points", "splats"])
def test_pixels_can_be_written_instead_of_a_mesh(tmp_path: Path, form: str):
    said = write(tmp_path / "ball.ply", format=form)
    count = int(said.split()[0])
    head = (tmp_path / "ball.ply").read_bytes().partition(b"end_header")[0].decode()
    assert f"element vertex {count}\n" in head
    comments = [line for line in head.splitlines() if line.startswith("comment ")]
    told = json.loads("".join(line.removeprefix("comment ") for line in comments))
    assert told["relief"]["licence"] == "CC-BY-4.0"


def test_pixels_need_a_ply(tmp_path: Path):
    with pytest.raises(UserError, match=r"the suffix must be \.ply for format=points"):
        check_outputs(str(tmp_path / "a.glb"), [0], ExportOptions(format="points"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "cloud"}, "format=cloud is not known: give mesh, points, splats"),
        ({"texture_format": "webp"}, "texture_format=webp is not known: give png, jpeg"),
        ({"faces": 3}, "faces=3"),
    ],
)
def test_unknown_options_are_user_errors(options: dict, words: str):
    with pytest.raises(UserError, match=words):
        ExportOptions(**options)
