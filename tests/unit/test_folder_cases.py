"""Folders of meshes: what is read of them before any figure is taken."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import trimesh

from modules.reporting.folder_cases import box_figures, folder_cases, frame_notes
from modules.reporting.mesh_files import asset_digest, file_notes, has_skin, named_files

SKINNED = {"asset": {"version": "2.0"}, "nodes": [{"mesh": 0, "skin": 0}], "skins": [{}]}


def write_glb(path: Path, document: dict) -> Path:
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    header = b"glTF" + (2).to_bytes(4, "little") + (20 + len(text)).to_bytes(4, "little")
    path.write_bytes(header + len(text).to_bytes(4, "little") + b"JSON" + text)
    return path


def test_a_skin_that_poses_a_mesh_is_seen_in_both_kinds_of_gltf(tmp_path):
    assert has_skin(write_glb(tmp_path / "a.glb", SKINNED))
    (tmp_path / "b.gltf").write_text(json.dumps(SKINNED))
    assert has_skin(tmp_path / "b.gltf")
    trimesh.creation.box().export(tmp_path / "plain.glb")
    assert not has_skin(tmp_path / "plain.glb")


@pytest.mark.parametrize("content", [b"", b"glTF", b"[]", b'{"nodes": 3}', b"\xff" * 64])
def test_a_damaged_file_has_no_skin_and_breaks_nothing(content, tmp_path):
    for suffix in ("glb", "gltf"):
        (tmp_path / f"x.{suffix}").write_bytes(content)
        assert not has_skin(tmp_path / f"x.{suffix}")


def test_the_note_counts_the_skinned_and_names_one(tmp_path):
    trimesh.creation.box().export(tmp_path / "plain.glb")
    assert file_notes(tmp_path) == []
    write_glb(tmp_path / "fish.glb", SKINNED)
    (note,) = file_notes(tmp_path, tmp_path)
    assert note.startswith("2 meshes are skinned, such as fish.glb")


def test_a_file_that_a_mesh_names_is_missed_and_is_part_of_its_digest(tmp_path):
    (tmp_path / "a.obj").write_text("mtllib a b.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    (note,) = file_notes(tmp_path)
    assert note.startswith("1 meshes name files that are not there, such as a.obj (a b.mtl)")
    before = asset_digest(tmp_path / "a.obj")
    (tmp_path / "a b.mtl").write_text("newmtl x\nmap_Kd -s 1 1 1 t.png\n")
    assert "t.png" in file_notes(tmp_path)[0]
    (tmp_path / "t.png").write_bytes(b"pixels")
    assert file_notes(tmp_path) == []
    with_texture = asset_digest(tmp_path / "a.obj")
    (tmp_path / "t.png").write_bytes(b"others")
    assert len({before, with_texture, asset_digest(tmp_path / "a.obj")}) == 3


def test_names_pair_however_their_accents_are_written(tmp_path):
    for folder, form in (("a", "NFC"), ("b", "NFD")):
        (tmp_path / folder).mkdir()
        name = unicodedata.normalize(form, "größe")
        trimesh.creation.box().export(tmp_path / folder / f"{name}.glb")
    (case,) = folder_cases(tmp_path / "a", tmp_path / "b")
    assert case.load().figures["box_scale"] == pytest.approx(1.0)
    assert named_files(tmp_path / "b").keys() == {"größe"}


BRICK = np.array([[[0.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, 0.0, 0.2]]]) - [0.5, 0.25, 0.1]


@pytest.mark.parametrize(
    ("changed", "expected", "said"),
    [
        (BRICK, (1.0, 0.0, 0.0), ""),
        (BRICK[..., [0, 2, 1]], (1.0, 0.0, 1.0), "turned by a quarter"),
        (BRICK * 3.0, (3.0, 0.0, 0.0), "another size or place"),
        (BRICK + np.array([0.0, 0.0, 0.6]), (1.0, 0.6, 0.0), "another size or place"),
        (BRICK * 0.9, (0.9, 0.0, 0.0), ""),
    ],
)
def test_another_frame_is_told(changed, expected, said):
    figures = box_figures(changed, BRICK)
    assert tuple(figures.values()) == pytest.approx(expected)
    notes = frame_notes([{"name": "brick", "metrics": figures}, {"name": "lost", "metrics": {}}])
    assert len(notes) == bool(said)
    assert not said or (said in notes[0] and "1 of 2" in notes[0] and "brick" in notes[0])
