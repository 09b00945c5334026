"""A packed set is a function of its samples; it changes all at once, and never mixes configs."""

import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from staged_spheres import CONFIG, stage_spheres

from data_pipeline.contract import UserError
from data_pipeline.loading.samples import SampleDataset
from data_pipeline.shards.attribution import Attribution, attribution_csv, read_attribution
from data_pipeline.shards.durable import recover, replace_folder
from data_pipeline.shards.manifest import ShardSet
from data_pipeline.shards.pack import pack_samples
from data_pipeline.shards.verify import verify_shards
from data_pipeline.shards.writer import ShardWriter
from data_pipeline.staging.verify import verify_samples

REPOSITORY = Path(__file__).resolve().parents[2]


def hashes(directory):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir()}


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    return stage_spheres(tmp_path_factory.mktemp("staged"), range(7)).root


def test_the_manifest_says_what_is_in_the_set(staged, tmp_path):
    manifest = pack_samples(staged, tmp_path / "set", 3)
    assert manifest == json.loads((tmp_path / "set/manifest.json").read_text())
    assert [shard["num_samples"] for shard in manifest["shards"]] == [3, 3, 1]
    assert manifest["shards"][1]["first_uid"] == "sphere_003"
    assert manifest["members"]["normal.png"] == {
        "encoding": "png",
        "dtype": "uint16",
        "shape": [6, 16, 16, 3],
    }
    assert manifest["members"]["geometry.npz"]["arrays"]["sdf_distance"]["dtype"] == "float32"
    assert (manifest["config_hash"], manifest["set_version"]) == (CONFIG, 1)
    assert manifest["render_spec"]["resolution_px"] == 16
    listed = {*manifest["files"], "manifest.json", *(s["name"] for s in manifest["shards"])}
    assert listed == {path.name for path in (tmp_path / "set").iterdir()}


def test_every_asset_is_attributed(staged, tmp_path):
    pack_samples(staged, tmp_path / "set", 3)
    with (tmp_path / "set/ATTRIBUTION.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["uid"] for line in lines] == ShardSet(tmp_path / "set", "samples").uids
    assert lines[2] == {
        "uid": "sphere_002", "licence": "CC0-1.0", "author": "Zoë, the 2th",
        "source": "https://example.org/a,b", "file": "2.glb", "sha256": "ab",
    }  # fmt: skip


def test_order_of_rendering_time_zone_locale_and_umask_change_no_byte(staged, tmp_path):
    other = stage_spheres(tmp_path / "staged", reversed(range(7))).root
    pack_samples(staged, tmp_path / "here", 3)
    command = [
        sys.executable, "-c",
        "import os, sys; from pathlib import Path; os.umask(0o077)\n"
        "from data_pipeline.shards.pack import pack_samples\n"
        "pack_samples(Path(sys.argv[1]), Path(sys.argv[2]), 3)",
        str(other), str(tmp_path / "there"),
    ]  # fmt: skip
    odd = {"TZ": "Asia/Kathmandu", "LC_ALL": "tr_TR.UTF-8", "PYTHONHASHSEED": "7"}
    subprocess.run(command, check=True, cwd=REPOSITORY, env=os.environ | odd)
    assert hashes(tmp_path / "here") == hashes(tmp_path / "there")


def test_packing_again_writes_nothing_unless_a_shard_is_damaged(staged, tmp_path):
    pack_samples(staged, tmp_path / "set", 3)
    shard = next((tmp_path / "set").glob("*.tar"))
    before, inode = hashes(tmp_path / "set"), shard.stat().st_ino
    pack_samples(staged, tmp_path / "set", 3)
    assert shard.stat().st_ino == inode
    shard.unlink()
    assert pack_samples(staged, tmp_path / "set", 3)["set_version"] == 2
    after = hashes(tmp_path / "set")
    assert {n for n in before if before[n] != after[n]} == {"manifest.json"}


def test_a_sample_finished_after_the_set_is_packed_again(tmp_path):
    staging = stage_spheres(tmp_path / "staged", range(4))
    pack_samples(staging.root, tmp_path / "set", 3)
    assert pack_samples(staging.root, tmp_path / "set", 3)["set_version"] == 1
    staging.samples.path("sphere_002").touch()
    assert pack_samples(staging.root, tmp_path / "set", 3)["set_version"] == 2


def test_damaged_samples_are_never_packed_and_all_are_named(tmp_path, capsys):
    staging = stage_spheres(tmp_path / "staged", range(4))
    verify_samples(staging)
    assert "4 finished samples, all sound" in capsys.readouterr().out
    for uid, place in (("sphere_001", 3000), ("sphere_003", 4000)):
        content = bytearray(staging.samples.path(uid).read_bytes())
        content[place] ^= 255
        staging.samples.path(uid).write_bytes(content)
    with pytest.raises(UserError, match=r"sphere_001.tar is damaged"):
        pack_samples(staging.root, tmp_path / "set", 3)
    assert not (tmp_path / "set").exists()
    with pytest.raises(UserError, match=r"2 of 4 finished samples are damaged"):
        verify_samples(staging)
    named = capsys.readouterr().out.split()
    assert named == [str(staging.samples.path(f"sphere_00{i}")) for i in (1, 3)]


def test_configs_do_not_mix_at_pack(staged, tmp_path):
    other = stage_spheres(tmp_path / "other", [1], config_hash="f" * 16).root
    pack_samples(staged, tmp_path / "set", 3)
    with pytest.raises(UserError, match=f"config {CONFIG}.*{'f' * 16}.*do not mix"):
        pack_samples(other, tmp_path / "set", 3)
    path = other / "render.json"
    path.write_text(path.read_text().replace("f" * 16, CONFIG))
    with pytest.raises(UserError, match=f"sphere_001.*config {'f' * 16}.*{CONFIG}.*do not mix"):
        pack_samples(other, tmp_path / "new", 3)
    assert not (tmp_path / "new").exists()


def test_configs_do_not_mix_at_load(staged, tmp_path):
    pack_samples(staged, tmp_path / "set", 3)
    path = tmp_path / "set/manifest.json"
    path.write_text(path.read_text().replace(f'"{CONFIG}"', '"' + "e" * 16 + '"'))
    dataset = SampleDataset(
        tmp_path / "set", num_surface_points=1, num_sdf_points=1, seed=0, keep_decoded=False
    )
    with pytest.raises(UserError, match=f"config {CONFIG}.*{'e' * 16}.*do not mix"):
        dataset.load(0)


def test_a_set_within_the_staging_folder_is_refused(staged):
    for shards in (staged, staged / "set", staged / "x/../set"):
        with pytest.raises(UserError, match="lies in the staging folder"):
            pack_samples(staged, shards, 3)


def test_what_a_spreadsheet_would_run_is_written_as_text(tmp_path):
    line = Attribution("chair", "CC0-1.0", '=HYPERLINK("x")', "@shop", "-1.glb", "ab")
    (tmp_path / "a.csv").write_bytes(attribution_csv([line]))
    (read,) = read_attribution(tmp_path / "a.csv")
    assert (read.author, read.source, read.file) == ('\'=HYPERLINK("x")', "'@shop", "'-1.glb")
    assert attribution_csv([read]) == attribution_csv([line])


def test_a_users_own_file_in_the_set_is_never_deleted(staged, tmp_path):
    pack_samples(staged, tmp_path / "set", 3)
    (tmp_path / "set/notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes.txt is no part of the set"):
        pack_samples(staged, tmp_path / "set", 2)
    assert (tmp_path / "set/notes.txt").read_text() == "mine"


def test_uids_must_ascend_so_that_none_is_there_twice(tmp_path):
    with ShardWriter(tmp_path / "set", "a", 3) as writer:
        writer.add("b", {"x.bin": b""})
        with pytest.raises(ValueError, match="comes after"):
            writer.add("b", {"x.bin": b""})


def test_two_packers_of_one_set_do_not_meet(staged, tmp_path):
    with (
        ShardWriter(tmp_path / "set", "a", 3),
        pytest.raises(UserError, match="written by another process"),
    ):
        pack_samples(staged, tmp_path / "set", 3)


def test_a_folder_moved_aside_by_a_killed_packer_comes_back(staged, tmp_path):
    pack_samples(staged, tmp_path / "set", 3)
    (tmp_path / "set").rename(tmp_path / ".set.replaced")
    assert len(ShardSet(tmp_path / "set", "samples")) == 7
    (tmp_path / ".set.replaced").mkdir()
    recover(tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_folder_is_replaced_by_its_successor(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["new"]


PACK_FOR_EVER = """
import itertools, sys
from pathlib import Path
from data_pipeline.shards.pack import pack_samples
one, other, shards = map(Path, sys.argv[1:])
print("ready", flush=True)
for staging in itertools.cycle((one, other)):
    pack_samples(staging, shards, 2)
"""


def kill_packers(folder: Path, kills: int) -> int:
    """Kill a packer that replaces one set by another for ever; return how often the set changed."""
    one = stage_spheres(folder / "one", range(9)).root
    other = stage_spheres(folder / "other", range(5, 12)).root
    uids = []
    for staging in (one, other):
        pack_samples(staging, folder / "fresh", 2)
        uids.append(ShardSet(folder / "fresh", "samples").uids)
        shutil.rmtree(folder / "fresh")
    generator = random.Random(kills)
    seen = []
    for _ in range(kills):
        arguments = [str(one), str(other), str(folder / "set")]
        with subprocess.Popen(
            [sys.executable, "-c", PACK_FOR_EVER, *arguments],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as packer:
            assert packer.stdout is not None
            assert packer.stdout.readline() == b"ready\n"
            time.sleep(generator.uniform(0.05, 0.8))
            packer.send_signal(signal.SIGKILL)
        if (folder / "set").exists():
            assert verify_shards(folder / "set", "samples", full=True) == []
            shard_set = ShardSet(folder / "set", "samples")
            assert shard_set.uids in uids
            seen.append(shard_set.manifest["set_version"])
    pack_samples(one, folder / "set", 3)
    assert sorted(p.name for p in folder.iterdir()) == ["one", "other", "set"]
    return len(set(seen))


def test_a_packer_killed_at_any_moment_leaves_a_whole_set(tmp_path):
    assert kill_packers(tmp_path, 5) >= 2


@pytest.mark.slow
def test_a_packer_killed_twenty_times_leaves_a_whole_set_each_time(tmp_path):
    assert kill_packers(tmp_path, 20) >= 10
