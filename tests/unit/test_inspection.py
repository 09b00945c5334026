"""`inspect` says what a set, a tar and a sample hold, and draws a sample's views."""

import json

import cv2
import numpy as np
import pytest
from staged_spheres import stage_spheres

from data_pipeline.codec import encode_views
from data_pipeline.contract import UserError
from data_pipeline.inspection import contact_sheet, inspect_shards
from data_pipeline.shards.manifest import ShardSet
from data_pipeline.shards.pack import pack_samples


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    staging = stage_spheres(folder / "staging", range(3), resolution_px=48)
    pack_samples(staging.root, folder / "set", 2)
    return folder / "set"


def test_of_a_set_members_shapes_counts_sizes_and_hashes_are_printed(directory, capsys):
    inspect_shards(directory, None, None)
    printed = capsys.readouterr().out
    shard_set = ShardSet(directory, "samples")
    assert shard_set.sha256 in printed
    assert "3 in 2 shards" in printed
    assert "png uint16 (6 48 48 3)" in printed
    assert "sdf_distance         float32 (256)" in printed
    for shard in shard_set.manifest["shards"]:
        assert shard["sha256"] in printed
        assert f"{shard['bytes']:,} B" in printed


def test_of_one_tar_the_same_is_printed_without_a_manifest(directory, capsys, tmp_path):
    path = sorted(directory.glob("*.tar"))[0]
    alone = tmp_path / path.name
    alone.write_bytes(path.read_bytes())
    inspect_shards(alone, None, None)
    printed = capsys.readouterr().out
    assert "2 samples (sphere_000 to sphere_001)" in printed
    assert "png uint16 (6 48 48 3)" in printed
    assert ShardSet(directory, "samples").manifest["shards"][0]["sha256"] in printed


def test_a_sample_is_printed_and_its_views_are_drawn_in_their_places(directory, capsys, tmp_path):
    inspect_shards(directory, "sphere_002", tmp_path / "sheets" / "a.png")
    assert '"licence": "CC0-1.0"' in capsys.readouterr().out
    drawn = cv2.imread(str(tmp_path / "sheets" / "a.png"))[..., ::-1]
    side, margin, label, top = 144, 8, 80, 86  # 48 px, three times as large
    assert drawn.shape == (top + 4 * (side + margin), label + 6 * (side + margin), 3)
    centres = [
        [
            drawn[top + row * (side + margin) + 72, label + view * (side + margin) + 72]
            for view in range(6)
        ]
        for row in range(4)
    ]
    assert np.array(centres[0]).tolist() == [[2, 253, 128]] * 6  # its colour
    front = np.array([0.0, -1.0, 0.0])  # the first view looks at the side that faces -Y
    np.testing.assert_allclose(centres[1][0], (front + 1) * 127.5, atol=6)
    np.testing.assert_allclose(centres[2][0], (front + 1) * 127.5, atol=6)  # radius .5: n/2 + .5
    assert np.array(centres[3]).tolist() == [[255, 255, 255]] * 6
    corner = drawn[top + 2, label + 2]
    assert corner.tolist() == [255, 255, 255]  # clear pixels lie on white


def test_large_views_are_drawn_smaller(tmp_path):
    staging = stage_spheres(tmp_path, [0], resolution_px=400)
    assert contact_sheet(staging.read("sphere_000")).shape == (86 + 4 * 328, 80 + 6 * 328, 3)


def test_lit_views_have_their_base_colour_below_them(directory):
    members = ShardSet(directory, "samples").read(0)
    meta = json.loads(members["meta.json"])
    meta["lightings"] = ["albedo"] * 4 + ["studio"] * 2
    red = np.broadcast_to(np.array([250, 0, 0], np.uint8), (2, 48, 48, 3))
    lit = {"albedo.png": encode_views(red), "meta.json": json.dumps(meta).encode()}
    row = contact_sheet(members | lit)[86 + 4 * 152 + 72]
    seen = [row[80 + view * 152 + 72].tolist() for view in range(6)]
    assert seen == [[255, 255, 255]] * 4 + [[250, 0, 0]] * 2


@pytest.mark.parametrize(
    ("uid", "png", "said"),
    [("sphere_01", None, "did you mean sphere_00"), (None, "a.png", "png= needs uid=")],
)
def test_wrong_questions_are_answered_with_what_to_ask(directory, tmp_path, uid, png, said):
    with pytest.raises(UserError, match=said):
        inspect_shards(directory, uid, png and tmp_path / png)


def test_a_file_that_is_no_tar_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar at all")
    with pytest.raises(UserError, match="is no shard"):
        inspect_shards(tmp_path / "a.tar", None, None)
