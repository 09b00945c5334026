"""Hostile assets and hostile machines: limits, retries, kills, and what is left of them."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
from balls import asset, write_ball
from golden.glb import GlbBuilder, uv_sphere, y_up

from data_pipeline.contract import SAMPLE_MEMBERS, QaLimits, RenderSpec, UserError
from data_pipeline.render.command import find_blender_python, render_assets
from data_pipeline.render.farm import Farm, Limits
from data_pipeline.render.worker_process import worker_environment
from data_pipeline.shards.manifest import ShardSet
from data_pipeline.shards.pack import pack_samples
from data_pipeline.sources import Asset
from data_pipeline.sources.folder import FolderSource
from data_pipeline.staging import Staging

pytestmark = pytest.mark.blender

REPOSITORY = Path(__file__).parents[2]
SMALL = RenderSpec(resolution_px=32, samples=2, surface_points=64, sdf_points=64)
MEDIUM = RenderSpec(resolution_px=128, samples=8, surface_points=64, sdf_points=64)
SLOW = RenderSpec(resolution_px=1024, samples=256, surface_points=64, sdf_points=64)


def wait_for(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_rendering(root: Path, uid: str) -> bool:
    return any(root.glob(f"scratch/*/{uid}"))


def workers_of(process: int | None = None) -> list[psutil.Process]:
    """Return the Blender workers of a driver, of this process by default."""
    workers = []
    for child in psutil.Process(process).children(recursive=True):
        with suppress(psutil.Error):
            if "data_pipeline.render.blender.worker" in child.cmdline():
                workers.append(child)
    return workers


@contextmanager
def signalled(root: Path, uid: str, how: signal.Signals) -> Iterator[None]:
    """Send a signal to the one worker as soon as it renders an asset."""

    def send() -> None:
        wait_for(lambda: is_rendering(root, uid))
        workers_of()[0].send_signal(how)

    sender = threading.Thread(target=send)
    sender.start()
    yield
    sender.join()


def attempts(root: Path, uid: str) -> list[str]:
    """Return how the attempts at an asset ended, in their order."""
    records = [record for record in Staging(root).records() if record["uid"] == uid]
    return [r.get("reason", "done") for r in sorted(records, key=lambda r: r["attempts"])]


# ------------------------------------------------------------------------------------ determinism


def test_bytes_depend_neither_on_the_number_of_workers_nor_on_the_order(tmp_path):
    assets = [write_ball(tmp_path / f"{i}.glb", 0.5 + 0.25 * i) for i in range(4)]
    render_assets(assets, tmp_path / "one", SMALL, workers=1)
    render_assets(assets[::-1], tmp_path / "two", SMALL, workers=2)
    one, two = Staging(tmp_path / "one"), Staging(tmp_path / "two")
    assert one.done_uids() == two.done_uids() == [a.uid for a in assets]
    for uid in one.done_uids():
        assert one.samples.path(uid).read_bytes() == two.samples.path(uid).read_bytes(), uid
    manifests = [pack_samples(s.root, tmp_path / f"{s.root.name}-tars", 3) for s in (one, two)]
    sums = [[shard["sha256"] for shard in manifest["shards"]] for manifest in manifests]
    assert sums[0] == sums[1]


# ----------------------------------------------------------------------------------------- limits


def test_an_asset_that_takes_too_long_is_given_up_until_it_is_asked_for(tmp_path):
    slow, bad = write_ball(tmp_path / "a.glb"), tmp_path / "b.glb"
    bad.write_bytes(b"")
    assets, out = [slow, asset(bad)], tmp_path / "out"
    # 6 views of 1024 px and 256 samples take far longer than a second.
    summary = render_assets(assets, out, SLOW, workers=1, timeout_s=1.0, max_attempts=1)
    assert summary.failures == {"timeout": 1, "unreadable": 1}
    record = Staging(out).failures()["a_glb"]
    assert record["message"] == "not done after 1 s"
    assert record["timeout_s"] == 1.0
    assert len(record["input_sha256"]) == 64
    assert not workers_of()
    again = render_assets(
        assets, out, SLOW, workers=1, timeout_s=2.0, max_attempts=1, retry="timeout"
    )
    assert again.failures == {"timeout": 1}
    assert attempts(out, "a_glb") == ["timeout", "timeout"]
    assert attempts(out, "b_glb") == ["unreadable"]


def write_memory_hog(path: Path, side_px: int) -> Asset:
    """A ball with a texture of some KB that unpacks to `side_px` squared times 4 bytes."""
    triangles, normals = uv_sphere(1.0, 8)
    builder = GlbBuilder()
    texture = builder.add_image(np.full((side_px, side_px, 3), 128, dtype=np.uint8))
    material = builder.add_material(pbrMetallicRoughness={"baseColorTexture": {"index": texture}})
    uv = np.zeros((*triangles.shape[:2], 2), dtype=np.float32)
    builder.add_mesh(y_up(triangles), normals=y_up(normals), uv=uv, material=material)
    return asset(builder.write(path))


def test_an_asset_that_takes_too_much_memory_costs_itself_alone(tmp_path):
    hog, ball = write_memory_hog(tmp_path / "a.glb", 8192), write_ball(tmp_path / "b.glb")
    out = tmp_path / "out"
    summary = render_assets([hog, ball], out, SMALL, workers=1, rss_limit_mb=600, max_attempts=1)
    assert summary.failures == {"oom": 1}
    assert attempts(out, "a_glb") == ["oom"]
    record = Staging(out).failures()["a_glb"]
    assert record["message"].endswith("MB; at most 600 MB are allowed")
    assert 600 < record["rss_mb"] < 2000
    assert Staging(out).done_uids() == ["b_glb"]
    (done,) = (record for record in Staging(out).records() if record["status"] == "done")
    assert 100 < done["rss_mb"] < 600


def test_a_worker_that_hangs_costs_one_attempt(tmp_path):
    assets, out = [write_ball(tmp_path / "a.glb"), write_ball(tmp_path / "b.glb")], tmp_path / "out"
    with signalled(out, "a_glb", signal.SIGSTOP):
        summary = render_assets(assets, out, MEDIUM, workers=1, timeout_s=15.0)
    assert summary.failures == {}
    assert attempts(out, "a_glb") == ["timeout", "done"]
    assert attempts(out, "b_glb") == ["done"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (signal.SIGSEGV, "Blender died (signal 11)"),
        (signal.SIGKILL, "Blender was killed from outside (signal 9)"),
    ],
)
def test_a_worker_that_dies_costs_one_attempt(tmp_path, how, message):
    assets, out = [write_ball(tmp_path / "a.glb"), write_ball(tmp_path / "b.glb")], tmp_path / "out"
    with signalled(out, "a_glb", how):
        summary = render_assets(assets, out, MEDIUM, workers=1)
    assert summary.failures == {}
    assert attempts(out, "a_glb") == ["crash", "done"]
    assert attempts(out, "b_glb") == ["done"]
    (crash,) = (record for record in Staging(out).records() if record["status"] == "failed")
    assert crash["message"] == message


def test_a_picture_is_kept_of_an_asset_that_fails_its_quality_check(tmp_path):
    ball = [write_ball(tmp_path / "a.glb")]
    strict = replace(SMALL, qa=QaLimits(min_hit_share=0.99))
    assert render_assets(ball, tmp_path / "out", strict, workers=1).failures == {"blank": 1}
    staging = Staging(tmp_path / "out")
    picture = cv2.imread(str(staging.rejected_picture("a_glb")))
    assert picture.shape == (96, 6 * 96, 3)
    assert picture.std() > 10
    assert attempts(staging.root, "a_glb") == ["blank"]  # no second attempt: it would not help


def test_workers_are_replaced_after_so_many_assets_and_keep_their_gpus(tmp_path):
    assets = [write_ball(tmp_path / f"{i}.glb", 0.5 + 0.25 * i) for i in range(4)]
    settings = {"spec": asdict(SMALL), "config_hash": "0" * 16, "threads": 1}
    jobs = [
        {
            "uid": a.uid, "path": str(a.path), "folder": str(tmp_path / "made" / a.uid),
            "captions": ["a"], "licence": "", "author": "", "source": "", "attributes": {},
        }
        for a in assets
    ]  # fmt: skip
    seen: dict[int, str] = {}
    farm = Farm(
        find_blender_python(None), settings, num_workers=2, limits=Limits(recycle_after=1),
        logs=tmp_path, gpus=("3", "GPU-5"),
    )  # fmt: skip
    with farm:
        for outcome in farm.run(jobs):
            assert outcome.reason is None, outcome
            for worker in workers_of():
                seen[worker.pid] = worker.environ()["CUDA_VISIBLE_DEVICES"]
        assert farm._num_started == 4
    assert set(seen.values()) == {"3", "GPU-5"}
    assert not workers_of()


def test_a_worker_sees_its_own_gpu_or_none(tmp_path):
    assert worker_environment(2, "1", tmp_path)["CUDA_VISIBLE_DEVICES"] == "1"
    assert worker_environment(2, None, tmp_path)["HIP_VISIBLE_DEVICES"] == "-1"


def test_a_blender_that_never_starts_is_an_error_and_blames_no_asset(tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    version, trouble = "-c) echo 4.5.15;;", "*) echo libXi.so.6 >&2; exit 1;;"
    python.write_text(f"#!/bin/sh\ncase $1 in {version} {trouble} esac\n")
    python.chmod(0o755)
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"does not start: libXi.so.6: install the system"):
        render_assets([write_ball(tmp_path / "a.glb")], out, SMALL, blender_python=str(python))
    assert Staging(out).records() == []
    assert os.listdir(out / "leases") == []


def test_pipes_and_names_that_are_no_utf8_stop_no_run(tmp_path):
    root = tmp_path / "assets"
    root.mkdir()
    os.mkfifo(root / "pipe.glb")
    write_ball(root / "ball.glb")
    os.rename(os.fsencode(root / "ball.glb"), os.fsencode(root) + b"/\xff\xfe.glb")
    summary = render_assets(FolderSource(root).assets(), tmp_path / "out", SMALL, workers=1)
    assert summary.num_rendered == 1
    assert summary.failures == {"unreadable": 1}
    pack_samples(tmp_path / "out", tmp_path / "set", 4)
    assert "?" not in ShardSet(tmp_path / "set", "samples").uids[0]


# ----------------------------------------------------------------------------------- interruption

PROGRAM = """
import json, sys
from pathlib import Path
from data_pipeline.contract import RenderSpec
from data_pipeline.render.command import render_assets
from data_pipeline.sources import Asset
root, names, spec, how = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]
assets = [Asset(uid=f"{n}_glb", path=root / f"{n}.glb", captions=("a thing",)) for n in names]
print(render_assets(assets, root / "out", RenderSpec(**spec), **json.loads(how)))
"""


def start_driver(root: Path, names: str, spec: RenderSpec, **how: object) -> subprocess.Popen:
    fields = {name: getattr(spec, name) for name in ("resolution_px", "samples", "surface_points")}
    fields["sdf_points"] = spec.sdf_points
    arguments = [str(root), names, json.dumps(fields), json.dumps(how)]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=REPOSITORY,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_worker_outlives_an_interrupted_run_and_the_next_run_goes_on(tmp_path, how):
    assets = [write_ball(tmp_path / "a.glb"), write_ball(tmp_path / "b.glb", 2.0)]
    driver = start_driver(tmp_path, "ab", MEDIUM, workers=1)
    staging = Staging(tmp_path / "out")
    wait_for(lambda: len(staging.done_uids()) == 1)
    (first,) = staging.done_uids()
    second = "a_glb" if first == "b_glb" else "b_glb"
    wait_for(lambda: is_rendering(staging.root, second))
    workers = workers_of(driver.pid)
    assert workers
    os.kill(driver.pid, how)
    _, alive = psutil.wait_procs(workers, timeout=3)  # within a second where there are idle cores
    assert not alive
    _, stderr = driver.communicate(timeout=20)
    assert driver.returncode != 0
    assert staging.done_uids() == [first]
    if how != signal.SIGKILL:
        assert "KeyboardInterrupt" in stderr
        assert os.listdir(staging.root / "scratch") == os.listdir(staging.root / "leases") == []
    before = staging.samples.path(first).stat().st_mtime_ns
    summary = render_assets(assets, staging.root, MEDIUM, workers=1)
    assert (summary.num_rendered, summary.num_skipped) == (1, 1)
    assert staging.samples.path(first).stat().st_mtime_ns == before
    assert os.listdir(staging.root / "scratch") == os.listdir(staging.root / "leases") == []


def test_an_asset_whose_runs_are_killed_is_given_up_and_may_be_tried_again(tmp_path):
    assets = [write_ball(tmp_path / "a.glb")]
    staging = Staging(tmp_path / "out")
    for _ in range(3):
        driver = start_driver(tmp_path, "a", MEDIUM, workers=1)
        wait_for(lambda: list(staging.root.glob(f"scratch/*-{driver.pid}-*/a_glb")))  # noqa: B023
        os.kill(driver.pid, signal.SIGKILL)
        driver.communicate(timeout=20)
    assert render_assets(assets, staging.root, MEDIUM, workers=1).num_skipped == 1
    noted = sorted((r["attempts"], r["reason"]) for r in staging.records())
    assert noted == [(1, "crash"), (2, "crash"), (3, "crash")]
    summary = render_assets(assets, staging.root, MEDIUM, workers=1, retry="crash")
    assert (summary.num_rendered, staging.done_uids()) == (1, ["a_glb"])


def chaos(root: Path, names: str, num_kills: int, seed: int) -> None:
    """Kill workers and drivers at random moments until all is done, and hold the result to it."""
    rng = random.Random(seed)
    for i, name in enumerate(names):
        write_ball(root / f"{name}.glb", 0.5 + 0.1 * i)
    render_assets([asset(root / f"{n}.glb") for n in names], root / "quiet", SMALL, workers=1)
    spec, how = SMALL, {"workers": 2, "max_attempts": 10 * num_kills}
    staging = Staging(root / "out")
    driver, kills = start_driver(root, names, spec, **how), Counter()
    deadline = time.monotonic() + 60 + 20 * num_kills
    while sum(kills.values()) < num_kills:
        assert time.monotonic() < deadline
        time.sleep(rng.uniform(0.0, 2.0))
        if driver.poll() is not None:  # all is done: take something away, and begin again
            assert driver.returncode == 0, driver.communicate()
            staging.samples.path(f"{rng.choice(names)}_glb").unlink(missing_ok=True)
            driver = start_driver(root, names, spec, **how)
            continue
        workers = workers_of(driver.pid)
        victim = rng.choice(["driver", "worker"]) if workers else "driver"
        with_pid = rng.choice(workers).pid if victim == "worker" else driver.pid
        try:
            os.kill(with_pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        kills[victim] += 1
        if victim == "driver":
            driver.communicate(timeout=20)
            driver = start_driver(root, names, spec, **how)
    stdout, stderr = driver.communicate(timeout=120)
    if driver.returncode == -signal.SIGKILL:
        stdout, stderr = start_driver(root, names, spec, **how).communicate(timeout=120)
    summary = render_assets([asset(root / f"{n}.glb") for n in names], root / "out", SMALL, **how)
    quiet = Staging(root / "quiet")
    assert staging.done_uids() == quiet.done_uids() == sorted(f"{name}_glb" for name in names)
    assert summary.num_skipped + summary.num_rendered == len(names), (stdout, stderr)
    for uid in quiet.done_uids():  # whole, and the same bytes as without the chaos
        assert staging.samples.path(uid).read_bytes() == quiet.samples.path(uid).read_bytes()
        assert tuple(sorted(staging.read(uid))) == SAMPLE_MEMBERS
    files = [path for path in (root / "out" / "samples").rglob("*") if path.is_file()]
    assert len(files) == len(names)
    assert os.listdir(root / "out" / "leases") == os.listdir(root / "out" / "scratch") == []
    # At most one asset per worker is redone: the killed one's, or those of the driver's two.
    numbers = Counter(record["uid"] for record in staging.records() if record["status"] == "failed")
    assert sum(numbers.values()) <= kills["worker"] + 2 * kills["driver"]


def test_a_handful_of_kills_of_workers_and_driver_corrupts_nothing(tmp_path):
    chaos(tmp_path, "abcdef", num_kills=4, seed=1)


@pytest.mark.slow
def test_twenty_kills_of_workers_and_driver_corrupt_nothing(tmp_path):
    chaos(tmp_path, "abcdefghij", num_kills=20, seed=2)
