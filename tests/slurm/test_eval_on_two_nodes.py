"""The evaluation array on a real two-node SLURM: four tasks, one report."""

import json
from pathlib import Path

import trimesh

REPOSITORY = Path(__file__).parents[2]


def test_an_array_of_four_writes_one_report(cluster, tmp_path):
    for folder, scale in (("meshes", 1.03), ("reference", 1.0)):
        (tmp_path / folder).mkdir()
        for i in range(5):
            ball = trimesh.creation.icosphere(2, scale)
            ball.export(tmp_path / folder / f"ball{i}.glb")
    cluster.run(
        "sbatch", "--wait", "--array=0-3", "--cpus-per-task=1",
        f"--output={tmp_path}/log-%a.txt", str(REPOSITORY / "slurm" / "eval.sbatch"),
        "task=meshes", f"meshes={tmp_path}/meshes", f"reference={tmp_path}/reference",
        f"out={tmp_path}/out", "num_samples=1000", "num_views=1", "resolution_px=32",
        cwd=REPOSITORY,
    )  # fmt: skip
    logs = {path.name: path.read_text() for path in sorted(tmp_path.glob("log-*.txt"))}
    assert sum("report.html" in text for text in logs.values()) >= 1, logs
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (report["num_pairs"], report["num_failed"]) == (5, 0), logs
