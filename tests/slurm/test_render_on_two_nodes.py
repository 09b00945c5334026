"""The render array on a real two-node SLURM: a node dies, and nothing is lost or done twice."""

import os
import time
from collections import Counter
from pathlib import Path

import pytest
from balls import write_ball
from two_nodes import TwoNodes

from data_pipeline.contract import RenderSpec, UserError
from data_pipeline.render.command import find_blender_python, render_assets
from data_pipeline.sources.folder import FolderSource
from data_pipeline.staging import Staging

pytestmark = pytest.mark.blender

REPOSITORY = Path(__file__).parents[2]
LEASE_S = 6


@pytest.fixture(autouse=True)
def blender():
    try:
        find_blender_python(None)
    except UserError as error:
        pytest.skip(str(error))


def wait_for(condition, what: str, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def submit(cluster: TwoNodes, root: Path) -> str:
    """Submit the array as a user would, and return its number."""
    return cluster.run(
        "sbatch", "--parsable", "--array=0-1", "--cpus-per-task=1",
        f"--output={root}/log-%a.txt", str(REPOSITORY / "slurm" / "render.sbatch"),
        "source=folder", f"source.root={root}/assets", f"out={root}/out", "resolution_px=64",
        "samples=2", "surface_points=64", "sdf_points=64", f"lease_s={LEASE_S}", "log_every_s=2",
        cwd=REPOSITORY,
    ).strip()  # fmt: skip


def logs(root: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(root.glob("log-*.txt")))


def test_a_set_is_completed_although_a_node_dies(cluster, tmp_path):
    (tmp_path / "assets").mkdir()
    names = [f"ball{i:02d}" for i in range(12)]
    for i, name in enumerate(names):
        write_ball(tmp_path / "assets" / f"{name}.glb", 0.5 + 0.1 * i)
    job = submit(cluster, tmp_path)
    staging = Staging(tmp_path / "out")

    def finished_by_each() -> Counter[str]:
        return Counter(r["writer"].rsplit("-", 2)[0] for r in staging.records())

    wait_for(lambda: min(finished_by_each()[n] for n in ("n1", "n2")) >= 1, "both work")
    assert cluster.kill_node("n1") >= 3  # step daemon, driver, Blender at least
    num_left = len(names) - len(staging.done_uids())
    assert num_left >= 1, "the node died too late to matter"
    wait_for(lambda: len(staging.done_uids()) == len(names), logs(tmp_path))
    # SLURM puts the dead node's task into the queue again, two minutes later; the test is hastier.
    wait_for(lambda: cluster.waiting(job), "queued again")
    wait_for(lambda: cluster.hurry(job), logs(tmp_path))
    assert "12 were done or given up before" in logs(tmp_path)

    assert staging.done_uids() == names
    times_done = Counter(r["uid"] for r in staging.records() if r["status"] == "done")
    assert set(times_done.values()) == {1}, times_done
    (interrupted,) = [r for r in staging.records() if r["status"] == "failed"]
    assert (interrupted["reason"], interrupted["attempts"]) == ("crash", 1)
    assert "its node died" in interrupted["message"]
    assert os.listdir(staging.root / "leases") == os.listdir(staging.root / "scratch") == []
    assert {r["run_id"] for r in staging.records()} == {f"slurm-{job}"}
    assert "assets, " in logs(tmp_path)  # lines of progress, no bar
    assert "\r" not in logs(tmp_path)


def test_a_cancelled_array_gives_its_work_back_at_once(cluster, tmp_path):
    (tmp_path / "assets").mkdir()
    for i in range(8):
        write_ball(tmp_path / "assets" / f"b{i}.glb", 0.5 + 0.1 * i)
    job = submit(cluster, tmp_path)
    staging = Staging(tmp_path / "out")
    wait_for(lambda: staging.done_uids(), "something is done")
    cluster.run("scancel", job)
    wait_for(lambda: cluster.is_over(job), "cancelled")
    assert os.listdir(staging.root / "leases") == os.listdir(staging.root / "scratch") == []
    assert logs(tmp_path).count("interrupted: the same command goes on from here") >= 1
    spec = RenderSpec(resolution_px=64, samples=2, surface_points=64, sdf_points=64)
    num_done = len(staging.done_uids())
    same = FolderSource(root=str(tmp_path / "assets")).assets()
    again = render_assets(same, staging.root, spec, workers=1)
    assert (again.num_rendered, again.num_skipped) == (8 - num_done, num_done)


@pytest.mark.slow
def test_a_task_near_its_time_limit_gives_its_work_back_and_queues_again(cluster, tmp_path):
    (tmp_path / "assets").mkdir()
    for i in range(10):
        write_ball(tmp_path / "assets" / f"b{i}.glb", 0.5 + 0.1 * i)
    job = submit(cluster, tmp_path)
    staging = Staging(tmp_path / "out")
    wait_for(lambda: staging.done_uids(), "something is done")
    cluster.run("scancel", "--batch", "--signal=USR1", job)  # as --signal=B:USR1@120 does
    wait_for(lambda: len(cluster.waiting(job)) == 2, "queued again")
    assert os.listdir(staging.root / "leases") == os.listdir(staging.root / "scratch") == []
    assert len(staging.done_uids()) < 10
    wait_for(lambda: cluster.hurry(job), logs(tmp_path))
    assert len(staging.done_uids()) == len(staging.records()) == 10, logs(tmp_path)
