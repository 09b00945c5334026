"""`repair` renders a lost sample again, and the set is what it was, to the byte."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.blender

REPOSITORY = Path(__file__).parents[2]
SOURCE = ["source=procedural", "source.root=assets", "source.count=3"]
SMALL = ["resolution_px=32", "samples=2", "surface_points=64", "sdf_points=64", "workers=1"]
PLACES = ["out=staging", "shards=shards"]


def run(folder: Path, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "data_pipeline", command, *arguments],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_lost_sample_is_rendered_again_and_nothing_else(tmp_path):
    assert run(tmp_path, "render", *SOURCE, *SMALL, "out=staging").returncode == 0
    assert run(tmp_path, "pack", *PLACES, "samples_per_shard=1").returncode == 0
    before = hashes(tmp_path / "shards")
    tars = sorted((tmp_path / "shards").glob("*.tar"))
    tars[1].unlink()
    shutil.rmtree(tmp_path / "staging")

    verified = run(tmp_path, "verify", "shards=shards")
    assert verified.returncode == 1
    assert f"{tars[1].name}: missing" in verified.stdout
    assert "data_pipeline repair out=STAGING shards=shards" in verified.stderr

    elsewhere = run(tmp_path, "repair", *PLACES, "source=procedural", "source.root=other",
                    "source.count=1", "source.seed=5", *SMALL)  # fmt: skip
    assert elsewhere.returncode == 1
    assert "the source has no asset" in elsewhere.stderr

    mended = run(tmp_path, "repair", *PLACES, *SOURCE, "workers=1")
    assert mended.returncode == 0, mended.stderr
    assert "1 of 1 assets rendered" in mended.stdout
    assert "1 of 3 shards written again, set version 2" in mended.stdout
    after = hashes(tmp_path / "shards")
    assert {name for name in before if before[name] != after[name]} == {"manifest.json"}
    assert run(tmp_path, "verify", "shards=shards", "mode=full").returncode == 0
