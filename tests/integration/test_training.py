"""train.py as a user meets it: it goes on after a kill, exactly, and tells what is wrong."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sphere_shards import write_sphere_shards

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_sphere_shards(tmp_path_factory.mktemp("spheres") / "shards")


def command(shards: Path, run: Path, *more: str) -> list[str]:
    return [
        sys.executable, "train.py", "experiment=tiny/autoencoder", f"shards={shards}",
        f"paths.run_dir={run}/run", f"paths.pipeline_dir={run}/pipeline", "logger=csv",
        "data.batch_size=2", "callbacks.checkpoint.every_n_steps=2", "trainer.log_every_n_steps=1",
        *more,
    ]  # fmt: skip


def train(shards: Path, run: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(shards, run, *more), cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


def weights(run: Path) -> dict[str, torch.Tensor]:
    [file] = (run / "pipeline/autoencoder").glob("*.safetensors")
    return load_file(file)


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been_killed(shards, tmp_path):
    whole = train(shards, tmp_path / "whole", "trainer.max_steps=8")
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        command(shards, tmp_path / "killed", "trainer.max_steps=8"),
        cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    checkpoints = tmp_path / "killed/run/checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step-*.ckpt")) and process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint within two minutes"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = train(shards, tmp_path / "killed", "trainer.max_steps=8")
    assert again.returncode == 0, again.stderr
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    third = train(shards, tmp_path / "killed", "trainer.max_steps=8")
    assert "reached already" in third.stdout


def test_ctrl_c_ends_in_one_line_and_the_code_of_an_interruption(shards, tmp_path):
    process = subprocess.Popen(
        command(shards, tmp_path, "trainer.max_steps=100000"),
        cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run/checkpoints").glob("step-*.ckpt")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on from step" in said.splitlines()[-1]
    assert said.splitlines()[-1].startswith("error: interrupted")
    assert "Traceback" not in said


def test_wrong_input_ends_in_one_line_and_writes_nothing(shards, tmp_path):
    cases = {
        "holds no manifest.json": (tmp_path / "absent", ()),
        "no such file": (shards, ("ckpt=absent.ckpt",)),
        "no_such_key": (shards, ("trainer.no_such_key=1",)),
    }
    for said, (folder, more) in cases.items():
        result = train(folder, tmp_path / "wrong", *more)
        assert result.returncode in (1, 2)
        assert said in result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "wrong").exists()


def test_a_path_that_cannot_be_written_ends_in_one_line(shards, tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = train(shards, tmp_path / "file", "trainer.max_steps=1")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in result.stderr


def test_a_set_too_small_to_hold_a_sample_back_trains_without_validation(tmp_path):
    four = write_sphere_shards(tmp_path / "shards", num_samples=4)
    result = train(four, tmp_path, "trainer.max_steps=2")
    assert result.returncode == 0, result.stderr
    header = next(tmp_path.glob("run/csv/*/metrics.csv")).read_text().splitlines()[0]
    assert "train/loss/total" in header
    assert "val/" not in header
