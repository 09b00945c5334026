"""Seconds of working with a large set: `python benchmarks/shards.py [SAMPLES]` (1,000,000).

Makes a set of so many synthetic samples, 256 to a shard, in a temporary folder: index, attribution
and manifest are real, the tars are holes of the right size. Prints what opening it, looking up a
uid, a misspelt uid, and `verify mode=fast` take, and the sizes and memory.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.contract import CONVENTIONS_VERSION, UserError
from data_pipeline.shards.attribution import ATTRIBUTION_NAME, Attribution, attribution_csv
from data_pipeline.shards.index import SampleIndex
from data_pipeline.shards.manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    MANIFEST_VERSION,
    ShardSet,
    file_entry,
)
from data_pipeline.shards.verify import verify_shards

SAMPLES_PER_SHARD = 256
MEMBER_BYTES = (235_000, 486_000, 12_300, 3_100, 819_000, 222_000)


def write_synthetic_set(directory: Path, num_samples: int) -> None:
    """Write a set whose tars are empty but for their size."""
    directory.mkdir()
    uids = [f"{i:032x}" for i in range(num_samples)]  # as long as Objaverse's
    row = np.arange(num_samples)
    stored = 512 * sum(1 + -(-size // 512) for size in MEMBER_BYTES)
    index = SampleIndex(
        uids=np.asarray([uid.encode() for uid in uids]),
        shard=(row // SAMPLES_PER_SHARD).astype(np.int32),
        start=(row % SAMPLES_PER_SHARD) * stored,
        size=np.tile(np.asarray(MEMBER_BYTES), (num_samples, 1)),
        digest=np.random.default_rng(0).integers(0, 256, (num_samples, 16), np.uint8),
    )
    index.save(directory / INDEX_NAME)
    origin = ("CC-BY-4.0", "an author", "https://example.org/3d-models/", "a.glb", "0" * 64)
    lines = (Attribution(uid, *origin) for uid in uids)
    (directory / ATTRIBUTION_NAME).write_bytes(attribution_csv(lines))
    shards = []
    for first in range(0, num_samples, SAMPLES_PER_SHARD):
        own = uids[first : first + SAMPLES_PER_SHARD]
        name = f"render-{'0' * 16}-{len(shards):06d}.tar"
        num_bytes = -(-(len(own) * stored + 1024) // 10240) * 10240
        with (directory / name).open("wb") as file:
            os.truncate(file.fileno(), num_bytes)
        shard = {"name": name, "bytes": num_bytes, "sha256": "0" * 64, "num_samples": len(own)}
        shards.append(shard | {"first_uid": own[0], "last_uid": own[-1]})
    manifest = {
        "version": MANIFEST_VERSION, "set_version": 1, "conventions": CONVENTIONS_VERSION,
        "kind": "samples", "num_samples": num_samples,
        "members": {f"member_{i}": {"encoding": "bytes"} for i in range(len(MEMBER_BYTES))},
        "files": {n: file_entry(directory / n) for n in (INDEX_NAME, ATTRIBUTION_NAME)},
        "shards": shards,
    }  # fmt: skip
    (directory / MANIFEST_NAME).write_text(json.dumps(manifest, indent=1, sort_keys=True))


def timed(what: str, call: Callable[[], Any]) -> Any:
    """Call, print the seconds, and return what came back."""
    start, cpu = time.perf_counter(), time.process_time()
    result = call()
    wall, used = time.perf_counter() - start, time.process_time() - cpu
    print(f"| {what} | {wall:.4f} | {used:.4f} |", flush=True)
    return result


def misspelt(shard_set: ShardSet) -> str:
    """Ask for a uid that is not there."""
    try:
        shard_set.index_of(f"{len(shard_set) // 3:032x}x")
    except UserError as error:
        return str(error)
    raise AssertionError("a misspelt uid was found")


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("samples", type=int, nargs="?", default=1_000_000)
    num_samples = parser.parse_args().samples
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "set"
        write_synthetic_set(directory, num_samples)
        print(f"{num_samples:,} samples of {SAMPLES_PER_SHARD} to a shard")
        for name in (MANIFEST_NAME, INDEX_NAME, ATTRIBUTION_NAME):
            print(f"{name}: {(directory / name).stat().st_size / 1e6:.1f} MB")
        print("| what | wall s | CPU s |\n|---|---|---|")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        shard_set = timed("open the set", lambda: ShardSet(directory, "samples"))
        asked = [f"{i:032x}" for i in range(0, num_samples, max(1, num_samples // 1000))]
        timed(f"find {len(asked)} uids", lambda: [shard_set.index_of(uid) for uid in asked])
        timed("refuse a misspelt uid", lambda: misspelt(shard_set))
        timed("list all uids", lambda: shard_set.uids)
        faults = timed("verify mode=fast", lambda: verify_shards(directory, "samples", full=False))
        assert not faults, faults
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
        print(f"(of which {before / 1024:.0f} MB were there before, from making the set)")


if __name__ == "__main__":
    main()
