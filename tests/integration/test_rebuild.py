"""Real and procedural assets through render, pack, train and rebuild, by the commands of a user."""

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from shared_assets import ASSETS

from data_pipeline.contract import make_uid
from data_pipeline.loading.samples import SampleDataset, collate
from modules.geometry.corruption import Corruption
from modules.networks.refiner import Refiner
from modules.systems.classical_inputs import ClassicalInputs
from modules.systems.refiner_decoder import RefinerDecoderSystem

REPOSITORY = Path(__file__).resolve().parents[2]


def command(*arguments: object) -> None:
    subprocess.run([sys.executable, *map(str, arguments)], cwd=REPOSITORY, check=True)


@pytest.fixture(scope="module")
def road(tmp_path_factory) -> Path:
    """Return a folder with `shards` of 24 real and 16 procedural assets, and all `assets`."""
    root = tmp_path_factory.mktemp("road")
    staging, made = root / "staging", root / "assets/made"
    render = ("-m", "data_pipeline", "render", f"out={staging}", "resolution_px=128")
    command(*render, "source=folder", f"source.root={ASSETS}", "source.count=24")
    command(*render, "source=procedural", f"source.root={made}", "source.count=16")
    command("-m", "data_pipeline", "pack", f"out={staging}", f"shards={root}/shards")
    uids = set(SampleDataset(
        root / "shards", num_surface_points=1, num_sdf_points=1, seed=0, keep_decoded=False
    ).shard_set.uids)  # fmt: skip
    assert len(uids) == 40
    for path in ASSETS.rglob("*.glb"):
        if make_uid(path.stem) in uids:
            shutil.copy(path, root / "assets")
    return root


@pytest.fixture(scope="module")
def few_shards(tmp_path_factory) -> Path:
    """Return shards of eight procedural assets."""
    root = tmp_path_factory.mktemp("few")
    command(
        "-m", "data_pipeline", "render", f"out={root}/staging", "resolution_px=64",
        "source=procedural", f"source.root={root}/assets", "source.count=8",
    )  # fmt: skip
    command("-m", "data_pipeline", "pack", f"out={root}/staging", f"shards={root}/shards")
    return root / "shards"


@pytest.mark.assets
@pytest.mark.blender
@pytest.mark.slow
def test_forty_assets_are_rebuilt_and_carry_their_colours(road: Path):
    """Medians: F-score@0.02 >= 0.95, masked PSNR >= 20 dB, seen or not; all are watertight."""
    command(
        "train.py", "experiment=tiny/refiner_decoder", f"shards={road}/shards", "logger=csv",
        "trainer.max_steps=100", f"paths.run_dir={road}/run", f"paths.pipeline_dir={road}/pipeline",
    )  # fmt: skip
    command(
        "eval.py", "task=rebuild", f"shards={road}/shards", f"checkpoint={road}/pipeline",
        f"reference={road}/assets", f"out={road}/report", "num_samples=30000",
    )  # fmt: skip
    report = json.loads((road / "report/report.json").read_text())
    assert (report["num_pairs"], report["num_failed"]) == (40, 0)
    assert {pair["truth"] for pair in report["pairs"]} == {"mesh"}
    median = {key: figures["median"] for key, figures in report["summary"].items()}
    assert median["f_score_0.02"] >= 0.95
    assert median["outer_recall_0.02"] >= 0.99
    assert median["input_view_psnr_masked"] >= 20.0
    assert median["psnr_masked"] >= 20.0
    for pair in report["pairs"]:
        assert pair["metrics"]["watertight"] == pair["metrics"]["manifold"] == 1.0, pair["name"]


@pytest.mark.blender
@pytest.mark.slow
def test_the_refiner_learns_eight_spoilt_assets_by_heart(few_shards: Path):
    """Errors of lifted points and of colours fall below shares of the classical ones."""
    torch.manual_seed(0)
    system = RefinerDecoderSystem(
        partial(Refiner, width=8, hidden=64, side=16),
        partial(torch.optim.AdamW, lr=4e-3),
    )
    system.configure_model()
    optimizer = system.configure_optimizers()
    noise = Corruption(clean_share=0.0, coord_noise=(0.02, 0.04), drop_share=0.5)
    samples = SampleDataset(
        few_shards,
        num_surface_points=512,
        num_sdf_points=1536,
        seed=0,
        keep_decoded=False,
        prepare=ClassicalInputs(side=16, truncation=0.05, corruption=noise),
    )
    batch = collate([samples[(i, i)] for i in range(8)])
    for _ in range(300):
        volumes = system.refiner.encode(batch["geometry"], batch["colour"])
        figures = system.figures(batch, volumes)
        optimizer.zero_grad()
        (figures["relative_point"] + figures["normal"] + figures["colour"]).backward()
        optimizer.step()
    assert figures["point"] < 0.35 * figures["classical_point"]
    assert figures["colour"] < 0.3 * figures["classical_colour"]
