"""A finished sample is one file, whole or absent, whose bytes depend on its members alone."""

import hashlib
import io
import tarfile

import pytest
import webdataset

from data_pipeline.contract import UserError
from data_pipeline.staging.sample_files import END_OF_ARCHIVE, SampleFiles, archive, chunk_of

MEMBERS = {"rgb.png": b"red", "meta.json": b"{}" * 400, "coord.png": b"x" * 512}


@pytest.fixture
def samples(tmp_path) -> SampleFiles:
    (tmp_path / "scratch").mkdir()
    return SampleFiles(tmp_path / "samples")


def test_a_published_sample_is_read_back_member_by_member(samples, tmp_path):
    samples.publish("boat", MEMBERS, tmp_path / "scratch")
    assert samples.read("boat") == MEMBERS
    assert samples.path("boat") == tmp_path / "samples" / chunk_of("boat") / "boat.tar"
    assert list((tmp_path / "scratch").iterdir()) == []


def test_samples_are_listed_by_chunk_and_all_together(samples, tmp_path):
    uids = [f"asset_{i}" for i in range(30)]
    for uid in uids:
        samples.publish(uid, MEMBERS, tmp_path / "scratch")
    assert sorted(samples.uids()) == sorted(uids)
    assert list(samples.uids_in(chunk_of("asset_7"))) == ["asset_7"]
    assert list(samples.uids_in("000")) == []


def test_equal_members_give_equal_bytes_in_any_order_and_at_any_time():
    assert archive("a", MEMBERS) == archive("a", dict(reversed(MEMBERS.items())))
    with tarfile.open(fileobj=io.BytesIO(archive("a", MEMBERS))) as tar:
        info = tar.getmembers()[0]
    assert (info.mtime, info.uid, info.gid, info.mode) == (0, 0, 0, 0o644)
    assert info.uname == hashlib.sha256(MEMBERS[info.name.removeprefix("a.")]).hexdigest()[:31]


def test_samples_laid_end_to_end_are_a_shard_that_webdataset_reads(tmp_path):
    shard = tmp_path / "shard.tar"
    shard.write_bytes(archive("a", MEMBERS)[: -len(END_OF_ARCHIVE)] + archive("b", MEMBERS))
    read = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    assert [sample["__key__"] for sample in read] == ["a", "b"]
    assert read[1]["coord.png"] == MEMBERS["coord.png"]


@pytest.mark.parametrize("place", [600, 1024, 2100, 3300])
def test_a_rotten_byte_is_an_error_that_names_the_file(samples, tmp_path, place):
    samples.publish("boat", MEMBERS, tmp_path / "scratch")
    content = bytearray(samples.path("boat").read_bytes())
    content[place] ^= 1
    samples.path("boat").write_bytes(content)
    with pytest.raises(UserError, match=r"boat.tar is damaged"):
        samples.read("boat")


@pytest.mark.parametrize("cut", [0, 100, 512, 700, 1024, 1300, 1600, -512, -1])
def test_a_truncated_sample_is_an_error_that_names_the_file(samples, tmp_path, cut):
    samples.publish("boat", MEMBERS, tmp_path / "scratch")
    path = samples.path("boat")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"boat.tar is damaged"):
        samples.read("boat")


def test_a_sample_that_is_not_there_says_so(samples):
    with pytest.raises(UserError, match="no finished sample boat"):
        samples.read("boat")


def test_a_file_of_another_sample_under_this_name_is_refused(samples, tmp_path):
    samples.publish("boat", MEMBERS, tmp_path / "scratch")
    path = samples.path("apple")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(samples.path("boat").read_bytes())
    with pytest.raises(UserError, match=r"apple.tar is damaged"):
        samples.read("apple")
