"""Repair gives the original bytes back, and writes and renders no more than is damaged."""

import os
import shutil

import pytest
from staged_spheres import stage_spheres
from test_pack import hashes
from test_verify import flip, tar

from data_pipeline.contract import UserError
from data_pipeline.shards.manifest import ShardSet
from data_pipeline.shards.pack import pack_samples
from data_pipeline.shards.repair import repair_shards
from data_pipeline.shards.verify import verify_shards


@pytest.fixture
def packed(tmp_path):
    """Return a staging folder and the set of seven samples in three shards packed from it."""
    staging = stage_spheres(tmp_path / "staging", range(7))
    pack_samples(staging.root, tmp_path / "set", 3)
    return staging, tmp_path / "set"


def render_nothing(uids, manifest):
    raise AssertionError(f"nothing is lost, but {uids} would be rendered")


def harm_two_shards(directory):
    flip(tar(directory, 0), 3000)
    os.truncate(tar(directory, 2), 700)


def delete_index_and_a_shard(directory):
    (directory / "index.npz").unlink()
    tar(directory, 1).unlink()


DAMAGES = {
    "two shards": harm_two_shards,
    "index and a shard": delete_index_and_a_shard,
    "the attribution": lambda directory: flip(directory / "ATTRIBUTION.csv", 70),
    "all": lambda directory: [p.unlink() for p in directory.iterdir() if p.suffix == ".tar"],
}


@pytest.mark.parametrize("name", DAMAGES)
def test_with_the_samples_still_staged_the_original_bytes_come_back(packed, name):
    staging, directory = packed
    before = hashes(directory)
    DAMAGES[name](directory)
    repair_shards(staging.root, directory, render_nothing)
    assert verify_shards(directory, "samples", full=True) == []
    after = hashes(directory)
    assert {n for n in before | after if before.get(n) != after.get(n)} == {"manifest.json"}
    assert ShardSet(directory, "samples").manifest["set_version"] == 2


def test_only_the_shards_concerned_are_written_again(packed):
    staging, directory = packed
    inodes = [tar(directory, i).stat().st_ino for i in range(3)]
    flip(tar(directory, 1), 3000)
    repair_shards(staging.root, directory, render_nothing)
    same = [tar(directory, i).stat().st_ino == inodes[i] for i in range(3)]
    assert same == [True, False, True]


def test_what_is_unharmed_in_a_damaged_shard_is_kept_and_only_the_rest_rendered(packed, tmp_path):
    staging, directory = packed
    before = hashes(directory)
    flip(tar(directory, 0), ShardSet(directory, "samples").index.span(1)[0] + 3000)
    os.truncate(tar(directory, 2), 700)
    shutil.rmtree(staging.root)
    asked = []

    def render(uids, manifest):
        asked.extend(uids)
        stage_spheres(tmp_path / "staging", [int(uid[-3:]) for uid in uids])

    repair_shards(staging.root, directory, render)
    assert asked == ["sphere_001", "sphere_006"]
    after = hashes(directory)
    assert {n for n in before if before[n] != after[n]} == {"manifest.json"}


def test_a_sound_set_is_left_as_it_is(packed, capsys):
    staging, directory = packed
    before = hashes(directory)
    repair_shards(staging.root, directory, render_nothing)
    assert hashes(directory) == before
    assert "nothing to repair" in capsys.readouterr().out


def test_a_changed_sample_is_said_to_be_another(packed, tmp_path, capsys):
    staging, directory = packed
    shutil.rmtree(staging.root)
    tar(directory, 2).unlink()
    renamed = stage_spheres(tmp_path / "staging", [6], resolution_px=24)
    repair_shards(renamed.root, directory, render_nothing)
    assert "1 shards are not what they were" in capsys.readouterr().out
    assert verify_shards(directory, "samples", full=True) == []


def test_beyond_repair_nothing_is_changed(packed):
    staging, directory = packed
    for name in ("index.npz", "ATTRIBUTION.csv"):
        (directory / name).unlink()
    tar(directory, 1).unlink()
    before = hashes(directory)
    with pytest.raises(UserError, match=r"nothing says which samples .*pack the set again"):
        repair_shards(staging.root, directory, render_nothing)
    assert hashes(directory) == before


def test_a_file_of_the_users_stops_a_repair_before_anything_is_lost(packed):
    staging, directory = packed
    (directory / "notes.txt").touch()
    with pytest.raises(UserError, match=r"no part of the set \(notes.txt\): move it"):
        repair_shards(staging.root, directory, render_nothing)
