"""The demo: what it remembers and refuses, its page, and (slow) the whole of it, interrupted."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from khronos import khronos_errors
from lightning.pytorch.loggers import CSVLogger
from sphere_shards import write_sphere_shards

from modules.pipelines.text_to_mesh import draw_images
from modules.reporting.demo_page import DemoRun, write_demo_page

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "scripts"))

from demo_prompts import choose_prompts, pictured_sample  # noqa: E402
from demo_record import StageRecord  # noqa: E402


def demo(*arguments: str) -> list[str]:
    return [sys.executable, "scripts/demo.py", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        demo(*arguments), cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


def test_the_record_counts_a_stage_until_it_is_done_and_no_longer(tmp_path):
    path = tmp_path / "stages.json"
    StageRecord(path).add("render", "Render", "a", 30.0, done=False)  # interrupted
    StageRecord(path).add("render", "Render", "a", 12.0, done=True)
    StageRecord(path).add("render", "Render", "a", 2.0, done=True)  # skipped
    [stage] = StageRecord(path).stages
    assert stage["seconds"] == 42.0
    StageRecord(path).add("render", "Render", "another command", 5.0, done=True)
    assert [stage["seconds"] for stage in StageRecord(path).stages] == [5.0]


def test_wrong_arguments_are_told_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/demo.json").write_text('{"assets": "procedural", "short": false}')
    for arguments, said in (
        (["colour=red"], "colour=red"),
        ([f"run_dir={tmp_path}/x", "assets=/no/such"], "/no/such"),
        ([f"run_dir={tmp_path}/x", f"assets={tmp_path}/empty"], "empty"),
        ([f"run_dir={tmp_path}/run", "short=true"], "give another folder"),
        ([f"run_dir={tmp_path}/run/demo.json/x"], "cannot be a folder"),
    ):
        result = run(*arguments)
        assert result.returncode == 1, result
        assert said in result.stderr
        assert result.stderr.count("\n") == 1


def test_prompts_are_captions_of_the_trained_samples_unless_they_may_be_invented(tmp_path):
    shards = write_sphere_shards(tmp_path / "shards")
    prompts = choose_prompts(shards, 3, invent=False)
    assert [prompt.text for prompt in prompts] == [
        "sphere sphere_0",
        "sphere sphere_1",
        "sphere sphere_4",
    ]
    assert all(prompt.in_training for prompt in prompts)
    known = {prompt.text for prompt in choose_prompts(shards, 9, invent=False)}
    assert known == {f"sphere sphere_{i}" for i in (0, 1, 2, 4, 5)}  # 3 is held back


def test_the_page_shows_a_run_and_needs_nothing_from_elsewhere(tmp_path):
    shards = write_sphere_shards(tmp_path / "shards", num_samples=2, resolution_px=64)
    out = tmp_path / "evaluation"
    subprocess.run(
        [sys.executable, "eval.py", "task=rebuild", f"shards={shards}", f"out={out}", "grid=32",
         "texture_px=64", "num_samples=2000", "num_views=1", "resolution_px=32"],
        cwd=REPOSITORY, check=True, capture_output=True,
    )  # fmt: skip
    generated = tmp_path / "generated"
    generated.mkdir()
    (generated / "a.glb").write_bytes((out / "rebuilt/sphere_0.glb").read_bytes())
    draw_images(torch.zeros(3, 6, 3, 16, 16), generated / "a.png")
    for stage in ("autoencoder", "latent_diffusion"):  # the third has logged nothing
        logger = CSVLogger(str(tmp_path / stage), name="csv")
        for step in range(5):
            logger.log_metrics({"train/loss/total": 1.0 / (step + 1)}, step)
        logger.save()
    record = StageRecord(tmp_path / "stages.json")
    record.add("render", "Render", "python -m data_pipeline render", 61.0, done=True)
    page = write_demo_page(
        DemoRun(
            folder=tmp_path,
            shown_folder="runs/demo",
            assets=None,
            short=False,
            prompts=[("a", "a <red> chair", False)],
            stages=record.stages,
            **pictured_sample(shards, "sphere sphere_1"),
        )
    ).read_text()
    assert "a &lt;red&gt; chair" in page
    assert "1 min 01 s" in page
    assert page.count('<svg class="chart"') == 2
    assert not re.search(r"https?://|<script|@import|url\(", page)
    for link in re.findall(r'href="([^"]+)"', page):
        assert (tmp_path / link).is_file(), link


@pytest.mark.slow
@pytest.mark.blender
def test_a_killed_demo_goes_on_and_ends_with_a_report_and_valid_meshes(tmp_path):
    folder = tmp_path / "demo"
    process = subprocess.Popen(
        demo(f"run_dir={folder}", "short=true"), cwd=REPOSITORY, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not (folder / "shards/manifest.json").is_file():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does
    assert process.wait() == 130
    rendered = {path: path.stat().st_mtime_ns for path in folder.glob("staging/samples/*/*.tar")}
    result = run(f"run_dir={folder}", "short=true")
    assert result.returncode == 0, result.stderr
    assert rendered == {path: path.stat().st_mtime_ns for path in rendered}
    assert (folder / "report.html").is_file()
    meshes = sorted(folder.glob("generated/*.glb")) + sorted(folder.glob("evaluation/**/*.glb"))
    assert len(meshes) == 5
    assert khronos_errors(*meshes) == {path.name: [] for path in meshes}
    assert json.loads((folder / "evaluation/report.json").read_text())["num_failed"] == 0
    assert str(folder) in result.stdout.splitlines()[-4]
