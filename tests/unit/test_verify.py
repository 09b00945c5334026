"""Every fault of a set of shards is found and named, those that webdataset reads over too."""

import hashlib
import json
import os
import re
import shutil
import tarfile

import pytest
import webdataset
from staged_spheres import stage_spheres

from data_pipeline.contract import UserError
from data_pipeline.shards.index import SampleIndex
from data_pipeline.shards.manifest import ShardSet
from data_pipeline.shards.pack import pack_samples
from data_pipeline.shards.verify import report_faults, verify_shards


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    staging = stage_spheres(folder / "staging", range(7))
    pack_samples(staging.root, folder / "set", 3)
    return folder / "set"


@pytest.fixture
def directory(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "set")


def tar(directory, number=0):
    return sorted(directory.glob("*.tar"))[number]


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def vouch(directory, name):
    """Have the manifest vouch for a file as it is now."""
    path, content = directory / "manifest.json", (directory / name).read_bytes()
    manifest = json.loads(path.read_text())
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["files"][name] = entry
    path.write_text(json.dumps(manifest))


def cut_after_first_sample(directory):
    os.truncate(tar(directory), ShardSet(directory, "samples").index.span(0)[1])


def cut_end_of_archive(directory):
    os.truncate(tar(directory), ShardSet(directory, "samples").index.span(2)[1])


def list_a_shard_twice(directory):
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][1] = manifest["shards"][0]
    path.write_text(json.dumps(manifest))


def name_a_uid_twice(directory):
    index = SampleIndex.load(directory / "index.npz")
    index.uids[3] = index.uids[2]
    index.save(directory / "index.npz")
    vouch(directory, "index.npz")


def attribute_to_another(directory):
    path = directory / "ATTRIBUTION.csv"
    path.write_bytes(path.read_bytes().replace(b"sphere_004", b"sphere_xxx"))
    vouch(directory, "ATTRIBUTION.csv")


BOTH, FULL = ("fast", "full"), ("full",)
FAULTS = {
    "a missing shard": (lambda d: tar(d).unlink(), BOTH, "000000.tar: missing"),
    "a truncated shard": (lambda d: os.truncate(tar(d), 5000), BOTH, "000000.tar: truncated"),
    "one cut between samples": (cut_after_first_sample, ("fast",), "1 of its 3 samples are left"),
    "what such a cut harmed": (cut_after_first_sample, FULL, "harmed: sphere_001, sphere_002"),
    "a missing end of archive": (cut_end_of_archive, FULL, "samples are whole, what ends"),
    "an extended shard": (lambda d: os.truncate(tar(d), 10**6), BOTH, "000000.tar: extended"),
    "a flipped byte": (lambda d: flip(tar(d, 1), 3000), FULL, "SHA-256.*harmed: sphere_003$"),
    "a flipped byte at the end": (lambda d: flip(tar(d), -1), FULL, "what ends the tar is not"),
    "a damaged index": (lambda d: flip(d / "index.npz", 200), BOTH, "index.npz: its SHA-256"),
    "a missing index": (lambda d: (d / "index.npz").unlink(), BOTH, "index.npz: missing"),
    "a damaged attribution": (lambda d: flip(d / "ATTRIBUTION.csv", 99), BOTH, "ATTRIBUTION.*SHA"),
    "attribution of others": (attribute_to_another, FULL, "its uids are not those"),
    "an unlisted tar": (lambda d: shutil.copy(tar(d), d / "x.tar"), BOTH, "x.tar: not in the man"),
    "any unlisted file": (lambda d: (d / "a.txt").touch(), BOTH, "a.txt: not in the manifest"),
    "a shard named twice": (list_a_shard_twice, BOTH, "000000.tar: 2 times in the manifest"),
    "a uid named twice": (name_a_uid_twice, BOTH, "uid sphere_002 is there twice"),
}  # fmt: skip


def test_a_sound_set_has_no_fault(sound):
    assert verify_shards(sound, "samples", full=False) == []
    assert verify_shards(sound, "samples", full=True) == []


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named(name, directory):
    damage, modes, said = FAULTS[name]
    damage(directory)
    for mode in modes:
        faults = "\n".join(verify_shards(directory, "samples", full=mode == "full"))
        assert re.search(said, faults, re.MULTILINE), faults


def test_webdataset_reads_over_a_cut_between_members_that_verify_sees(directory):
    """webdataset 1.0.2 yields the half sample without an error."""
    with tarfile.open(tar(directory)) as members:
        second = members.getmembers()[7]
    os.truncate(tar(directory), second.offset)
    url = str(tar(directory))
    samples = list(webdataset.WebDataset([url], shardshuffle=False))
    keys = [{key for key in sample if not key.startswith("__")} for sample in samples]
    assert len(keys[0]) == 6
    assert len(keys[1]) == 1  # no error, and five members short
    (fault,) = verify_shards(directory, "samples", full=False)
    assert "truncated" in fault
    assert "1 of its 3 samples are left" in fault


def test_webdataset_and_the_index_read_the_same_samples(sound):
    urls = [str(path) for path in sorted(sound.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    shard_set = ShardSet(sound, "samples")
    assert [sample["__key__"] for sample in samples] == shard_set.uids
    for i, sample in enumerate(samples):
        assert shard_set.read(i) == {k: v for k, v in sample.items() if not k.startswith("__")}


def test_a_report_has_a_line_for_each_fault_up_to_a_bound_and_says_what_to_do(tmp_path, capsys):
    with pytest.raises(UserError, match=r"30 faults in .*data_pipeline repair out=STAGING shards="):
        report_faults([f"fault {i}" for i in range(30)], tmp_path, "samples", bound=20)
    assert capsys.readouterr().out.splitlines()[18:] == ["fault 18", "fault 19", "... and 10 more"]
    report_faults([], tmp_path, "samples")


def test_damaged_sets_are_refused_at_load_with_the_way_to_mend_them(directory):
    flip(directory / "index.npz", 200)
    with pytest.raises(UserError, match=r"index.npz is damaged.*repair"):
        ShardSet(directory, "samples")
    (directory / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest.json is damaged"):
        verify_shards(directory, "samples", full=False)
