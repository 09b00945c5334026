"""Every `python` command of the README runs, in its order, on a small set."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SMALLER = {
    "-m data_pipeline render": [
        "source.count=4",
        "surface_points=2048",
        "sdf_points=2048",
        "samples=4",
    ],
    "train.py experiment=tiny/autoencoder": ["trainer.max_steps=4"],
    "train.py experiment=tiny/latent_diffusion": ["trainer.max_steps=80"],  # until a surface shows
    "train.py experiment=tiny/refiner_decoder": ["trainer.max_steps=4"],
    "generate.py prompt": ["steps=2", "texture_px=64", "grid=32"],
    "generate.py mesh": ["steps=2", "texture_px=128"],
    "generate.py sample": ["texture_px=64", "grid=48"],
    "eval.py": ["num_samples=2000", "texture_px=64", "grid=48"],
}  # fmt: skip


def readme_commands() -> list[list[str]]:
    text = (REPOSITORY / "README.md").read_text()
    script = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in script.splitlines()]
    return [words[1:] for words in lines if words[:1] == ["python"]]


def run(arguments: list[str], folder: Path) -> str:
    arguments = [*arguments]
    for start, extra in SMALLER.items():
        if " ".join(arguments).startswith(start):
            given = {argument.partition("=")[0] for argument in extra}
            arguments = [a for a in arguments if a.partition("=")[0] not in given] + extra
    if arguments[0] == "train.py":
        stage = arguments[1].rpartition("/")[2]
        arguments += [f"paths.run_dir=runs/tiny/{stage}"]
    script = [str(REPOSITORY / arguments[0])] if arguments[0].endswith(".py") else arguments[:1]
    result = subprocess.run(
        [sys.executable, *script, *arguments[1:]],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, f"{arguments}:\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.mark.blender
def test_the_readmes_commands_run_one_after_the_other(tmp_path):
    commands = readme_commands()
    assert len(commands) >= 8
    for arguments in commands:
        if any("=UID" in argument for argument in arguments):
            stats = run(
                ["-m", "data_pipeline", "stats", "out=data/staging", "format=json"], tmp_path
            )
            uid = next(iter(json.loads(stats)["assets"]))
            arguments = [a.replace("UID", uid) for a in arguments]
        run(arguments, tmp_path)
    assert (tmp_path / "views.png").stat().st_size > 1000
    stages = json.loads((tmp_path / "runs/tiny/pipeline/relief.json").read_text())["stages"]
    assert stages == ["autoencoder", "denoiser", "refiner_decoder"]
    assert (tmp_path / "red.glb").is_file()
    assert list((tmp_path / "rebuilt").glob("*.glb"))
    report = json.loads((tmp_path / "runs/eval/report.json").read_text())
    assert report["summary"]["f_score_0.02"]["median"] > 0.5
    again = run(commands[0], tmp_path)
    assert "0 of 4 assets rendered" in again
