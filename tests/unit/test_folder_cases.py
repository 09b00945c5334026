"""Folders of meshes: what is read of them before any figure is taken."""

import json
from pathlib import Path

import pytest
import trimesh

from modules.reporting.folder_cases import has_skin, unposed_note

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
    assert unposed_note(tmp_path) == []
    write_glb(tmp_path / "fish.glb", SKINNED)
    (note,) = unposed_note(tmp_path, tmp_path)
    assert note.startswith("2 meshes are skinned, such as fish.glb")
