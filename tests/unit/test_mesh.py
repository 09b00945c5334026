import json
import struct
from pathlib import Path

import numpy as np
import pytest
import trimesh

from data_pipeline.contract import SourceFrame, UserError
from modules.geometry.mesh import (
    TexturedMesh,
    load_mesh,
    sample_texture,
    save_mesh,
    smooth_normals,
)
from modules.metrics.mesh_quality import mesh_quality


def quadrants(half: int = 2) -> np.ndarray:
    """A texture: top left red, top right green, bottom left blue, bottom right white."""
    texture = np.zeros((2 * half, 2 * half, 3), np.uint8)
    texture[:half, :half], texture[:half, half:] = (255, 0, 0), (0, 255, 0)
    texture[half:, :half], texture[half:, half:] = (0, 0, 255), (255, 255, 255)
    return texture


def front_quad() -> TexturedMesh:
    """A square in the plane y = -0.25 that faces -Y (the front), its u along +X, its v along +Z."""
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    vertices = np.stack([uv[:, 0] - 0.5, np.full(4, -0.25), uv[:, 1] - 0.25], axis=1)
    return TexturedMesh(vertices, np.array([[0, 1, 2], [0, 2, 3]]), uv, quadrants(32))


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply"])
def test_a_saved_mesh_loads_with_equal_positions_normals_and_colours(tmp_path: Path, suffix: str):
    mesh = front_quad()
    save_mesh(mesh, tmp_path / f"quad{suffix}")
    loaded = load_mesh(tmp_path / f"quad{suffix}")
    face = np.array([0, 1])
    thirds = np.full((2, 3), 1 / 3)
    np.testing.assert_allclose(
        loaded.vertices[loaded.faces].mean(axis=1),
        mesh.vertices[mesh.faces].mean(axis=1),
        atol=1e-6,
    )
    np.testing.assert_allclose(loaded.normals_at(face, thirds), [[0, -1, 0]] * 2, atol=1e-4)
    if suffix != ".ply":  # a PLY holds colours per vertex only
        near_corners = np.array([[0.85, 0.05, 0.1], [0.05, 0.1, 0.85]])  # bottom left, top left
        colours = loaded.colours_at(face, near_corners)
        np.testing.assert_allclose(colours, [[0, 0, 1], [1, 0, 0]], atol=0.01)


def test_a_glb_is_y_up_and_its_texture_coordinates_point_down(tmp_path: Path):
    save_mesh(front_quad(), tmp_path / "quad.glb", extras={"relief": {"prompt": "é 漢"}})
    content = (tmp_path / "quad.glb").read_bytes()
    length = struct.unpack_from("<I", content, 12)[0]
    document = json.loads(content[20 : 20 + length])
    binary = content[28 + length :]
    assert document["scenes"][0]["extras"]["relief"]["prompt"] == "é 漢"
    views = document["bufferViews"]
    positions = np.frombuffer(binary, "<f4", 12, views[0]["byteOffset"]).reshape(4, 3)
    # World -Y (the front) is glTF's +Z, world +Z is glTF's +Y.
    np.testing.assert_allclose(positions[3], [-0.5, 0.75, 0.25])
    uv = np.frombuffer(binary, "<f4", 8, views[2]["byteOffset"]).reshape(4, 2)
    np.testing.assert_allclose(uv[3], [0.0, 0.0])  # the top left corner is the image's first row


def test_equal_meshes_give_equal_bytes(tmp_path: Path):
    for name in ("a.glb", "b.glb"):
        save_mesh(front_quad(), tmp_path / name)
    assert (tmp_path / "a.glb").read_bytes() == (tmp_path / "b.glb").read_bytes()


def test_a_frame_maps_a_mesh_back_to_its_source(tmp_path: Path):
    frame = SourceFrame(scale=0.5, offset=(0.1, 0.0, -0.2))
    save_mesh(front_quad(), tmp_path / "quad.glb", frame)
    loaded = load_mesh(tmp_path / "quad.glb")
    np.testing.assert_allclose(loaded.vertices, frame.to_source(front_quad().vertices), atol=1e-6)
    np.testing.assert_allclose(loaded.transformed(frame).vertices, front_quad().vertices, atol=1e-6)


def test_scene_transforms_materials_and_vertex_colours_are_baked(tmp_path: Path):
    box = trimesh.creation.box(extents=(1, 1, 1))
    box.visual = trimesh.visual.TextureVisuals(
        uv=np.zeros((8, 2)),
        material=trimesh.visual.material.PBRMaterial(baseColorFactor=[128, 0, 0, 255]),
    )
    scene = trimesh.Scene()
    scene.add_geometry(box, transform=trimesh.transformations.translation_matrix([0, 2, 0]))
    scene.add_geometry(
        box, transform=trimesh.transformations.reflection_matrix([5, 0, 0], [1, 0, 0])
    )
    scene.export(tmp_path / "scene.glb")
    mesh = load_mesh(tmp_path / "scene.glb")
    assert len(mesh.faces) == 24
    np.testing.assert_allclose(mesh.vertices.max(axis=0), [10.5, 0.5, 2.5], atol=1e-6)
    corners = mesh.vertices[mesh.faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    centre = np.where(corners.mean(axis=1)[:, :1] > 5, [[10.0, 0, 0]], [[0.0, 0, 2]])
    assert ((corners.mean(axis=1) - centre) * normal).sum(
        axis=1
    ).min() > 0  # outwards, mirrored too
    # Base colour factors are linear: 128/255 in linear light is 188/255 in sRGB.
    colours = mesh.colours_at(np.arange(24), np.full((24, 3), 1 / 3))
    np.testing.assert_allclose(colours, [[188 / 255, 0, 0]] * 24, atol=0.003)


@pytest.mark.parametrize(("suffix", "shown"), [(".glb", 188 / 255), (".ply", 128 / 255)])
def test_vertex_colours_without_a_material_are_linear_in_gltf_alone(
    tmp_path: Path, suffix: str, shown: float
):
    box = trimesh.creation.box()
    box.visual.vertex_colors = np.full((8, 4), [128, 128, 128, 255], dtype=np.uint8)
    box.export(tmp_path / f"box{suffix}")
    colours = load_mesh(tmp_path / f"box{suffix}").colours_at(
        np.arange(12), np.full((12, 3), 1 / 3)
    )
    np.testing.assert_allclose(colours, shown, atol=0.003)


def test_bilinear_samples_are_exact_at_texel_centres_and_half_way_between():
    uv = np.array([[0.125, 0.875], [0.875, 0.125], [0.5, 0.875]])
    samples = sample_texture(quadrants(), uv)
    np.testing.assert_allclose(samples, [[1, 0, 0], [1, 1, 1], [0.5, 0.5, 0]], atol=1e-9)


def test_normals_are_equal_on_both_sides_of_a_texture_seam():
    sphere = trimesh.creation.icosphere(subdivisions=2)
    vertices = sphere.vertices[sphere.faces].reshape(-1, 3)  # every face a chart of its own
    faces = np.arange(len(vertices)).reshape(-1, 3)
    normals = smooth_normals(vertices, faces)
    assert (normals * vertices).sum(axis=1).min() > 0.999


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply"])
def test_a_mesh_far_from_its_files_origin_stays_watertight(tmp_path: Path, suffix: str):
    sphere = trimesh.creation.icosphere(subdivisions=4, radius=0.4)
    uv = np.full((len(sphere.vertices), 2), 0.5, np.float32)
    vertices = np.asarray(sphere.vertices.astype(np.float32), np.float64)
    mesh = TexturedMesh(vertices, np.asarray(sphere.faces, np.int64), uv, quadrants())
    frame = SourceFrame(scale=20.0, offset=(-2e6, 3.0, 1e7))
    save_mesh(mesh, tmp_path / f"far{suffix}", frame)
    loaded = load_mesh(tmp_path / f"far{suffix}")
    quality = mesh_quality(loaded.vertices, loaded.faces)
    assert quality["watertight"] == quality["manifold"] == 1.0
    np.testing.assert_allclose(loaded.vertices, frame.to_source(vertices), rtol=1e-12, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.glb", None, "no mesh file"),
        ("torn.glb", b"glTF\x02\x00\x00\x00", "cannot read"),
        ("empty.ply", b"ply\nformat ascii 1.0\nelement vertex 0\nend_header\n", "no faces|cannot"),
    ],
)
def test_files_that_hold_no_mesh_are_user_errors(
    tmp_path: Path, name: str, content: bytes | None, words: str
):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        load_mesh(tmp_path / name)


def test_paths_that_cannot_be_written_are_user_errors(tmp_path: Path):
    with pytest.raises(UserError, match="suffix"):
        save_mesh(front_quad(), tmp_path / "quad.xyz")
    with pytest.raises(UserError, match="cannot write"):
        save_mesh(front_quad(), tmp_path / "nowhere" / "quad.glb")
