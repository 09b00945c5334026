"""Shards are byte-deterministic, readable by stock webdataset and at random, and damage is seen."""

import hashlib
import json

import numpy as np
import pytest
import webdataset

from data_pipeline.contract import UserError
from data_pipeline.loading.order import GlobalOrder
from data_pipeline.shards.manifest import ShardSet
from data_pipeline.shards.verify import verify_shards
from data_pipeline.shards.writer import ShardWriter

MEMBERS = {
    f"asset_{i}": {"a.bin": bytes([i]) * (100 + i), "meta.json": b'{"i": %d}' % i} for i in range(7)
}


def write(directory, samples=MEMBERS):
    with ShardWriter(directory, "set", samples_per_shard=3) as writer:
        for uid, members in samples.items():
            writer.add(uid, members)
        writer.finish({"kind": "samples"})


def hashes(directory):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir()}


def test_equal_samples_give_equal_bytes(tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "two")
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    assert len(list((tmp_path / "one").glob("set-*.tar"))) == 3


def test_random_access_returns_what_was_written(tmp_path):
    write(tmp_path / "set")
    shard_set = ShardSet(tmp_path / "set", "samples")
    for i in (6, 0, 3):
        assert shard_set.read(i) == MEMBERS[f"asset_{i}"]
    assert shard_set.index_of("asset_4") == 4


def test_stock_webdataset_reads_the_tars(tmp_path):
    write(tmp_path / "set")
    urls = [str(p) for p in sorted((tmp_path / "set").glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [s["__key__"] for s in samples] == list(MEMBERS)
    assert samples[5]["a.bin"] == MEMBERS["asset_5"]["a.bin"]


def test_a_set_is_replaced_as_a_whole_and_an_interrupted_write_leaves_the_old_one(tmp_path):
    write(tmp_path / "set")
    before = hashes(tmp_path / "set")
    with pytest.raises(ValueError, match="dot"), ShardWriter(tmp_path / "set", "new", 3) as writer:
        writer.add("x.y", {"a.bin": b"1"})
    assert hashes(tmp_path / "set") == before
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    write(tmp_path / "set", {"other": {"a.bin": b"1"}})
    assert ShardSet(tmp_path / "set", "samples").uids == ["other"]


def test_a_folder_of_other_things_is_never_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dear.jpg").write_bytes(b"1")
    with pytest.raises(UserError, match="not overwritten"):
        ShardWriter(tmp_path / "photos", "set", 3)


def test_verify_names_a_flipped_byte_a_short_shard_and_a_missing_one(tmp_path):
    write(tmp_path / "set")
    assert verify_shards(tmp_path / "set", "samples", full=True) == []
    first, second, third = sorted((tmp_path / "set").glob("*.tar"))
    content = bytearray(first.read_bytes())
    content[600] ^= 1
    first.write_bytes(content)
    second.write_bytes(second.read_bytes()[:700])
    third.unlink()
    assert len(verify_shards(tmp_path / "set", "samples", full=False)) == 2
    assert len(verify_shards(tmp_path / "set", "samples", full=True)) == 3
    with pytest.raises(UserError, match="shorter than its index"):
        ShardSet(tmp_path / "set", "samples").read(4)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"kind": "latents"}, "latents"), ({"conventions": 99}, "99"), ({"version": 9}, "version 9")],
)
def test_a_set_of_another_kind_is_refused(tmp_path, change, said):
    write(tmp_path / "set")
    path = tmp_path / "set" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=said):
        ShardSet(tmp_path / "set", "samples")


def test_the_global_order_does_not_depend_on_the_number_of_ranks():
    def first(world_size, start=0, steps=5):
        ranks = [
            iter(GlobalOrder(7, 6, seed=1, start=start, rank=r, world_size=world_size))
            for r in range(world_size)
        ]
        return [sorted(d for rank in ranks for d in next(rank)) for _ in range(steps)]

    assert first(1) == first(2) == first(3)
    assert first(2, start=12, steps=3) == first(1)[2:]
    epoch = [sample for batch in first(1, steps=7) for _, sample in batch]
    assert np.bincount(epoch, minlength=7).tolist() == [6] * 7
    assert epoch[:7] != epoch[7:14]
