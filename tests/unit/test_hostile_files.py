"""Files made to harm or broken by accident: each is refused before Blender sees it, by name."""

import base64
import contextlib
import io
import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from golden.glb import GlbBuilder, uv_sphere
from hostile import exr, hdr, jpeg, png, refused, write, write_links_that_lead_out

from data_pipeline.contract import make_uid
from data_pipeline.render.checks.float_images import float_image_size
from data_pipeline.render.failures import AssetFailure
from data_pipeline.render.nonfinite import check_finite
from data_pipeline.render.precheck import check_file
from data_pipeline.staging import Staging

TRIANGLE = np.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0]]], dtype=np.float32)


KTX2 = b"\xabKTX 20\xbb\r\n\x1a\n" + bytes(68)


def builder() -> GlbBuilder:
    made = GlbBuilder()
    made.add_mesh(TRIANGLE)
    return made


def with_image(content: bytes) -> GlbBuilder:
    """Return a GLB whose texture is this content."""
    made = builder()
    made.document["images"] = [{"bufferView": made._view(content), "mimeType": "image/png"}]
    made.document["textures"] = [{"source": 0}]
    return made


def with_uri(uri: str) -> dict[str, Any]:
    """Return a glTF whose texture lies at this URI."""
    return {"images": [{"uri": uri}], "textures": [{"source": 0}]}


def changed(**tables: Any) -> GlbBuilder:
    """Return a GLB with other tables."""
    made = builder()
    made.document |= tables
    return made


def accessor(**keys: Any) -> GlbBuilder:
    """Return a GLB whose first accessor says something else."""
    made = builder()
    made.document["accessors"][0] |= keys
    return made


# -------------------------------------------------------------------------------- leading elsewhere

ESCAPES = [
    "../secret.png", "a/../../secret.png", "/etc/passwd", "file:///etc/passwd", "//host/x.png",
    "http://host/x.png", "HTTPS://host/x.png", "%2e%2e/secret.png", "..%2fsecret.png",
    "%252e%252e/secret.png", "..\\secret.png", "C:\\secret.png", "~/secret.png", "x\0.png",
    "link.png", "folder_link/secret.png",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_links_that_lead_out(tmp_path)


@pytest.mark.parametrize("uri", ESCAPES)
@pytest.mark.parametrize("kind", ["image", "buffer"])
def test_a_gltf_follows_nothing_outside_of_its_folder(folder, uri: str, kind: str) -> None:
    made = builder()
    made.document |= with_uri(uri)
    path = made.write(folder / "a.glb")
    if kind == "buffer":
        document = made.document | {"buffers": [{"byteLength": 4, "uri": uri}]}
        path = write(folder / "a.gltf", json.dumps(document))
    failure = refused(path)
    assert failure.reason == "unsupported"
    assert "outside of its own folder" in failure.message


def test_an_image_that_no_texture_shows_is_not_followed_either(folder) -> None:
    made = changed(images=[{"uri": "../secret.png"}])
    assert refused(made.write(folder / "a.glb")).reason == "unsupported"


@pytest.mark.parametrize("image", ["../secret.png", "-s 1 1 1 ../secret.png", "link.png"])
def test_a_material_file_of_an_obj_leads_nowhere_else(folder, image: str) -> None:
    write(folder / "a.mtl", f"newmtl m\nmap_Kd {image}\n")
    path = write(folder / "a.obj", "mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    assert refused(path).reason == "unsupported"
    path = write(folder / "b.obj", "mtllib ../secret.mtl\nv 0 0 0\n")
    assert refused(path).reason == "unsupported"


def test_paths_of_the_artists_machine_are_looked_for_by_name(folder) -> None:
    write(folder / "wood one.png", png(8, 8))
    write(folder / "a.mtl", "newmtl m\nmap_Kd C:\\art\\wood one.png\nmap_Ks ../gone/shine.png\n")
    path = write(folder / "a.obj", "mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    check_file(path)


def dae(image: str, head: str = "") -> str:
    return (
        f'<?xml version="1.0"?>{head}<COLLADA version="1.4.1"><library_images><image id="i">'
        f"<init_from>{image}</init_from></image></library_images></COLLADA>"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (dae("../secret.png"), "unsupported"),
        (dae("link.png"), "unsupported"),
        (dae("gone.png"), "missing_texture"),
        (dae("x.png", '<!DOCTYPE x [<!ENTITY a "aaaa">]>'), "unsupported"),
        (dae("x").replace("<library_images>", '<node><instance_node url="../b.dae#n"/></node>'
                          "<library_images>"), "unsupported"),
    ],
)  # fmt: skip
def test_a_collada_file_leads_nowhere_and_declares_no_entities(folder, content, reason) -> None:
    assert refused(write(folder / "a.dae", content)).reason == reason


def test_patterns_over_hostile_text_take_no_time_without_end(tmp_path) -> None:
    start = time.process_time()
    for text in ("<image ", "<init_from>", "url='", "<image id=", "<image" + " " * 500):
        content = "<COLLADA>" + text * (300_000 // len(text))
        with contextlib.suppress(AssetFailure):
            check_file(write(tmp_path / "a.dae", content))
    for text in ("@@@", "@", "@@ ", "@\n", "@a@"):
        with contextlib.suppress(AssetFailure):
            check_file(write(tmp_path / "a.usda", "#usda 1.0\n" + text * 100_000))
    for text in (" " * 500 + "\n", "mtllib", "mtllib \n"):
        check_file(write(tmp_path / "a.obj", text * (300_000 // len(text))))
    assert time.process_time() - start < 20.0


def test_a_surface_of_a_collada_file_names_its_image_by_id(folder) -> None:
    write(folder / "wood.png", png(8, 8))
    effect = "<effect><surface><init_from>i</init_from></surface></effect></COLLADA>"
    check_file(write(folder / "a.dae", dae("wood.png").replace("</COLLADA>", effect)))


def fbx(name: str) -> bytes:
    text = name.encode()
    record = b"\x10RelativeFilenameS" + struct.pack("<I", len(text)) + text
    return b"Kaydara FBX Binary  \x00\x1a\x00" + struct.pack("<I", 7400) + bytes(32) + record


def test_an_fbx_leads_nowhere_and_its_missing_images_are_left_to_the_renderer(folder) -> None:
    assert refused(write(folder / "a.fbx", fbx("..\\secret.png"))).reason == "unsupported"
    assert refused(write(folder / "b.fbx", fbx("link.png"))).reason == "unsupported"
    write(folder / "huge.png", png(60000, 60000))
    assert refused(write(folder / "c.fbx", fbx("D:\\art\\huge.png"))).reason == "too_large"
    check_file(write(folder / "d.fbx", fbx("gone.png")))


def test_an_image_embedded_in_an_fbx_is_as_large_as_one_beside_it(tmp_path) -> None:
    def embedding(image: bytes) -> bytes:
        return fbx("a.png") + b"\x07ContentR" + struct.pack("<I", len(image)) + image

    check_file(write(tmp_path / "a.fbx", embedding(png(64, 64))))
    check_file(write(tmp_path / "b.fbx", embedding(b"")))
    assert refused(write(tmp_path / "c.fbx", embedding(png(60000, 60000)))).reason == "too_large"
    overlapping = (b"\x07ContentR" + struct.pack("<I", 100_000)) * 100_000
    start = time.process_time()
    assert refused(write(tmp_path / "d.fbx", fbx("a.png") + overlapping)).reason == "unreadable"
    assert time.process_time() - start < 5.0


# ------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    "image",
    [png(60000, 60000), jpeg(60000, 60000), png(40000, 1), exr(60000, 60000), hdr(40000, 1)],
    ids=["png", "jpeg", "thin png", "exr", "thin hdr"],
)
@pytest.mark.parametrize("place", ["in the GLB", "beside it", "in a data URI"])
def test_images_of_absurd_size_are_refused_before_they_are_decoded(tmp_path, image, place) -> None:
    if place == "in the GLB":
        path = with_image(image).write(tmp_path / "a.glb")
    elif place == "beside it":
        write(tmp_path / "my image.png", image)
        path = changed(**with_uri("my%20image.png")).write(tmp_path / "a.glb")
    else:
        uri = "data:image/png;base64," + base64.b64encode(image).decode()
        path = changed(**with_uri(uri)).write(tmp_path / "a.glb")
    failure = refused(path)
    assert failure.reason == "too_large"
    assert "pixels" in failure.message


def test_the_size_of_float_images_is_read_from_their_header() -> None:
    pixels = np.zeros((3, 5, 3), np.float32)
    written = cv2.imencode(".hdr", pixels)[1].tobytes()
    assert float_image_size(io.BytesIO(written)) == (5, 3)
    assert float_image_size(io.BytesIO(exr(5, 3))) == (5, 3)
    assert float_image_size(io.BytesIO(png(5, 3))) is None


@pytest.mark.parametrize(
    "image",
    [exr(5, 3)[:40], b"#?RADIANCE\n\nrubbish", exr(0, 3), exr(5, 3)[:5] + b"\x10" + exr(5, 3)[6:]],
    ids=["cut off", "no resolution", "empty window", "several parts"],
)
def test_damaged_float_images_are_unreadable(tmp_path, image) -> None:
    assert refused(with_image(image).write(tmp_path / "a.glb")).reason == "unreadable"


def test_many_images_of_a_sound_size_are_too_large_together(tmp_path) -> None:
    made = builder()
    view = made._view(png(16384, 8192))
    made.document["images"] = [{"bufferView": view}] * 5
    made.document["textures"] = [{"source": index} for index in range(5)]
    assert "its images hold" in refused(made.write(tmp_path / "a.glb")).message


def test_ktx_textures_are_refused_with_the_command_that_rewrites_them(tmp_path) -> None:
    choice = {"KHR_texture_basisu": {"source": 0}}
    cases = [
        with_image(KTX2),
        changed(extensionsRequired=["KHR_texture_basisu"]),
        changed(textures=[{"extensions": choice}]),
    ]
    for case in cases:
        failure = refused(case.write(tmp_path / "a.glb"))
        assert failure.reason == "unsupported"
        assert "npx @gltf-transform/cli ktxdecompress in.glb out.glb" in failure.message
    made = with_image(png(8, 8))
    made.document["textures"][0]["extensions"] = choice
    made.document["extensionsUsed"] = ["KHR_texture_basisu"]
    check_file(made.write(tmp_path / "fallback.glb"))


def test_meshopt_is_refused_with_the_command_that_rewrites_it(tmp_path) -> None:
    made = changed(extensionsRequired=["EXT_meshopt_compression"])
    failure = refused(made.write(tmp_path / "a.glb"))
    assert failure.reason == "unsupported"
    assert "npx @gltf-transform/cli dequantize in.glb out.glb" in failure.message


def test_a_missing_or_empty_texture_is_named(tmp_path) -> None:
    failure = refused(changed(**with_uri("gone.png")).write(tmp_path / "a.glb"))
    assert (failure.reason, "gone.png" in failure.message) == ("missing_texture", True)
    write(tmp_path / "empty.png", b"")
    failure = refused(changed(**with_uri("empty.png")).write(tmp_path / "b.glb"))
    assert failure.reason == "missing_texture"
    write(tmp_path / "a.mtl", "newmtl m\nmap_Kd gone.png\n")
    assert refused(write(tmp_path / "a.obj", "mtllib a.mtl\nv 0 0 0\n")).reason == "missing_texture"


# ------------------------------------------------------------------------------------ glTF's tables


def cyclic() -> GlbBuilder:
    return changed(nodes=[{"children": [1]}, {"children": [0]}], scenes=[{"nodes": [0]}])


def chain(length: int) -> GlbBuilder:
    nodes: list[dict[str, Any]] = [{"children": [i + 1]} for i in range(length)]
    return changed(nodes=[*nodes, {"mesh": 0}])


def crowd() -> GlbBuilder:
    made = GlbBuilder()
    made.add_mesh(uv_sphere(1.0, 60)[0])
    made.document["nodes"] *= 400
    return made


@pytest.mark.parametrize(
    ("make", "reason", "message"),
    [
        (lambda: accessor(count=2**31), "too_large", "numbers"),
        (lambda: accessor(count=2**70), "unreadable", "count"),
        (lambda: accessor(count=-3), "unreadable", "count"),
        (lambda: accessor(count="many"), "unreadable", "count"),
        (lambda: accessor(count=4), "unreadable", "beyond its buffer view"),
        (lambda: accessor(byteOffset=2**39), "unreadable", "beyond its buffer view"),
        (lambda: accessor(type="VEC9"), "unreadable", "contradict"),
        (lambda: accessor(bufferView=7), "unreadable", "contradict"),
        (
            lambda: changed(bufferViews=[{"buffer": 0, "byteLength": 9**9}]),
            "unreadable",
            "reaches",
        ),
        (lambda: changed(bufferViews=3), "unreadable", "no list"),
        (cyclic, "unreadable", "cycle"),
        (lambda: changed(nodes=[{"children": [1, 1]}, {"mesh": 0}]), "unreadable", "parents"),
        (lambda: chain(500), "unsupported", "nested"),
        (crowd, "too_large", "faces"),
        (lambda: changed(meshes=[{"primitives": []}]), "empty", "no primitive"),
        (lambda: changed(meshes=[]), "empty", "no mesh"),
    ],
)
def test_tables_that_overflow_or_do_not_end_are_refused(
    tmp_path, make: Callable[[], GlbBuilder], reason: str, message: str
) -> None:
    failure = refused(make().write(tmp_path / "a.glb"))
    assert failure.reason == reason
    assert message in failure.message


def test_json_that_nests_without_end_is_unreadable(tmp_path) -> None:
    deep = "[" * 200_000
    assert refused(write(tmp_path / "a.gltf", '{"asset": ' + deep)).reason == "unreadable"
    digits = '{"meshes": ' + "9" * 10_000 + "}"
    assert refused(write(tmp_path / "b.gltf", digits)).reason == "unreadable"


def test_a_gltf_with_its_files_beside_it_passes_and_a_truncated_buffer_does_not(tmp_path) -> None:
    made = with_image(png(8, 8))
    document = made.document | {"buffers": [{"byteLength": len(made._binary), "uri": "my%20a.bin"}]}
    write(tmp_path / "my a.bin", made._binary)
    path = write(tmp_path / "a.gltf", json.dumps(document))
    check_file(path)
    write(tmp_path / "my a.bin", made._binary[:-10])
    assert "truncated" in refused(path).message
    os.unlink(tmp_path / "my a.bin")
    assert refused(path).reason == "unreadable"


def test_infinite_vertices_are_found_in_buffers_beside_a_gltf(tmp_path) -> None:
    made = GlbBuilder()
    made.add_mesh(np.array([[[0, 0, 0], [1, np.inf, 0], [0, 1, 0]]], dtype=np.float32))
    document = made.document | {"buffers": [{"byteLength": len(made._binary), "uri": "a.bin"}]}
    write(tmp_path / "a.bin", made._binary)
    path = write(tmp_path / "a.gltf", json.dumps(document))
    with pytest.raises(AssetFailure, match="1 vertices") as caught:
        check_finite(path)
    assert caught.value.reason == "nonfinite"


# ---------------------------------------------------------------------------------- kinds and names


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.glb", b"<!DOCTYPE html><html>404</html>", "an HTML page"),
        ("a.glb", b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        ("a.glb", b"\x89PNG\r\n\x1a\n", "a PNG image"),
        ("a.glb", b"glTF", "truncated"),
        ("a.glb", b"", "0 bytes"),
        ("a.ply", b"solid x", "an STL file"),
        ("a.obj", b"\n <html>", "an HTML page"),
        ("a.stl", b"<html>", "an HTML page"),
        ("a.fbx", b"; FBX 7.3.0 project file", "save it as binary FBX"),
        ("a.usdz", b"#usda 1.0", "a USD text file"),
        ("a.dae", b"<html></html>", "an HTML page"),
        ("a.gltf", b"glTF\x02", "a GLB file"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_unreadable(tmp_path, name, content, message):
    failure = refused(write(tmp_path / name, content))
    assert failure.reason == "unreadable"
    assert message in failure.message


def test_files_over_the_limit_are_refused_unread(tmp_path) -> None:
    path = tmp_path / "a.glb"
    with path.open("wb") as file:
        file.truncate(1_000_000_001)
    assert refused(path).reason == "too_large"


@pytest.mark.parametrize(
    "uid", ["../../etc/x", "..", "", "/", "x" * 300, "con", "a\0b", "a\nb", "漢字", "é/..\\é", "."]
)
def test_no_uid_leads_out_of_the_staging_folder(tmp_path, uid: str) -> None:
    safe = make_uid(uid)
    assert safe
    assert len(f"{safe}.geometry.npz") <= 100
    place = Staging(tmp_path).samples.path(safe)
    assert place.resolve().is_relative_to(tmp_path / "samples")
    assert place.stem == safe
