"""A ledger and a staging folder of a million assets: `python benchmarks/ledger.py [COUNT] [ROOT]`.

Writes COUNT (1,000,000) synthetic records as 8 writers would, one in 50 a failure, then measures in
processes of their own what a user waits for: the digest made from the lines, loaded from its file,
`stats`, and the start of a render run up to its first claim. Samples are empty files, whose listing
costs the same as that of full ones. It also measures folder layouts for them.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data_pipeline.render.options import RenderOptions
from data_pipeline.render.work_queue import WorkQueue
from data_pipeline.sources import Asset
from data_pipeline.staging import Staging
from data_pipeline.stats.summary import summarise

NUM_WRITERS = 8
FAILURE_EVERY = 50
RECORD = {"config_hash": "0" * 16, "render_spec": {}, "blender": "4.5"}


def uid_of(i: int) -> str:
    """Return a uid as Objaverse has them."""
    return hashlib.md5(b"%d" % i).hexdigest()


def record_of(i: int, rng: random.Random) -> dict:
    """Return a record with all that a real one has."""
    failed = i % FAILURE_EVERY == 0
    seconds = {k: round(rng.uniform(0, 5), 4) for k in ("import", "render", "geometry", "write")}
    record = {
        "uid": uid_of(i), "status": "failed" if failed else "done", "attempts": 1, "give_up_at": 2,
        "config_hash": "0" * 16, "timeout_s": 300, "rss_limit_mb": None, "device": "CPU",
        "input_sha256": hashlib.sha256(b"%d" % i).hexdigest(), "host": "node001",
        "rss_mb": round(rng.uniform(300, 2000), 1), "run_id": "slurm-1234567", "time": 1e9 + i,
        "seconds": seconds | {"total": round(sum(seconds.values()), 4)}, "writer": "node001-12345",
    }  # fmt: skip
    if failed:
        reason = rng.choice(["unreadable", "empty", "too_large"])
        record |= {"reason": reason, "message": "a line " * 10, "log_tail": "x" * 500}
    return record


def write_staging(root: Path, count: int) -> None:
    """Write lines and empty samples, leaving one asset in a thousand undone."""
    staging = Staging(root)
    with staging.open_for_render(RECORD, num_assets=count):
        pass
    rng = random.Random(0)
    files = [(root / "ledger" / f"n{i}.jsonl").open("w") for i in range(NUM_WRITERS)]
    for i in range(count):
        if i % 1000 == 7:
            continue
        record = record_of(i, rng)
        files[i % NUM_WRITERS].write(json.dumps(record, sort_keys=True) + "\n")
        if record["status"] == "done":
            path = staging.samples.path(record["uid"])
            path.parent.mkdir(exist_ok=True)
            path.touch()
    for file in files:
        file.close()


def step(name: str, root: Path, count: int) -> None:
    """Do and time one step in this process."""
    staging = Staging(root)
    assets = []
    if name == "render":
        path = Path("asset.glb")
        assets = [Asset(uid=uid_of(i), path=path, captions=("a",)) for i in range(count)]
    start, cpu_start = time.perf_counter(), time.process_time()
    if name == "make":
        digest = staging.digest()
        digest.save(root)
        note = f"{os.path.getsize(root / 'ledger' / 'digest.sqlite') / 1e6:.0f} MB"
    elif name == "load":
        note = f"{len(staging.digest().failures())} failures"
    elif name == "stats":
        summary = summarise(staging, staging.digest())
        note = f"{summary.num_done} done, {sum(summary.failed.values())} failed"
    else:
        note = first_claim(staging, assets)
    seconds = time.perf_counter() - start
    cpu_seconds = time.process_time() - cpu_start
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"| {name} | {seconds:.1f} | {cpu_seconds:.1f} | {peak_mb:.0f} | {note} |", flush=True)


def first_claim(staging: Staging, assets: list[Asset]) -> str:
    """Open the folder and claim; return what further claims cost."""
    with staging.open_for_render(RECORD, num_assets=len(assets)) as session:
        queue = WorkQueue(assets, staging, session, RenderOptions())
        attempts = queue.attempts()
        assert next(attempts) is not None
        first = time.perf_counter()
        num_claims = min(50, queue.num_unsettled - 10)
        for _ in range(num_claims):  # an asset in a thousand: nearly every attempt is a claim
            assert next(attempts) is not None
        per_claim_ms = (time.perf_counter() - first) / num_claims * 1000
    return f"{queue.num_unsettled} to do; every further claim {per_claim_ms:.1f} ms"


def measure_layouts(root: Path, count: int) -> None:
    """Print what folders of several depths cost: to fill, to list, and in inodes."""
    print("\n| folders | create, us a file | list, us a file | inodes a sample |")
    print("|---|---|---|---|")
    uids = [hashlib.sha256(b"%d" % i).hexdigest() for i in range(count)]
    for name, cuts in (("256", (2,)), ("4096", (3,)), ("256 x 256", (2, 2))):
        folder = root / "layout"
        made: set[str] = set()
        start = time.process_time()
        for uid in uids:
            parts, at = [str(folder)], 0
            for cut in cuts:
                parts.append(uid[at : at + cut])
                at += cut
            place = "/".join(parts)
            if place not in made:
                os.makedirs(place)
                made.add(place)
            os.close(os.open(f"{place}/{uid}", os.O_CREAT | os.O_WRONLY))
        created = time.process_time() - start
        start = time.process_time()
        assert sum(len(os.listdir(place)) for place in sorted(made)) == count
        listed = time.process_time() - start
        shutil.rmtree(folder)
        each = 1e6 / count
        print(
            f"| {name} | {created * each:.1f} | {listed * each:.2f} | {1 + len(made) / count:.3f} |"
        )


def main() -> None:
    """Write, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=1_000_000)
    parser.add_argument("root", type=Path, nargs="?")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        step(arguments.step, arguments.root, arguments.count)
        return
    with tempfile.TemporaryDirectory(dir=arguments.root) as folder:
        root = Path(folder) / "staging"
        write_staging(root, arguments.count)
        size = sum(path.stat().st_size for path in (root / "ledger").glob("*.jsonl"))
        print(f"{arguments.count} assets, {size / 1e6:.0f} MB of lines\n")
        print("| step | seconds | CPU seconds | peak MB | |\n|---|---|---|---|---|", flush=True)
        for name in ("make", "load", "stats", "render"):
            command = [sys.executable, __file__, str(arguments.count), str(root), "--step", name]
            subprocess.run(command, check=True)
        measure_layouts(Path(folder), min(arguments.count, 300_000))


if __name__ == "__main__":
    main()
