"""Every experiment composes, instantiates, and builds its networks on the meta device."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tiny_autoencoder import TinyDC

from data_pipeline.command_line import CONFIG_DIR, compose
from data_pipeline.contract import UserError
from modules.callbacks.checkpoint import find_checkpoint

EXPERIMENTS = sorted(
    f"{p.parent.name}/{p.stem}" for p in (CONFIG_DIR / "experiment").glob("*/*.yaml")
)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_composes_instantiates_and_builds(name, tmp_path):
    options = [
        f"experiment={name}",
        "shards=x",
        f"latents={tmp_path}",
        f"paths.run_dir={tmp_path}",
        "trainer.accelerator=cpu",
    ]
    config = compose("train", options)
    if "source" in (config.get("image_autoencoder") or {}):  # its weights are not on this machine
        TinyDC().save_pretrained(tmp_path / "vae")
        config = compose("train", [*options, f"image_autoencoder.source={tmp_path}/vae"])
    instantiate(config.data)
    for node in config.callbacks.values():
        instantiate(node)
    instantiate(config.trainer, logger=False)
    if OmegaConf.is_missing(config, "conditioner"):  # of pretrained text: a plan needs none
        network = instantiate(config.denoiser, _convert_="object")
    else:
        system = instantiate(config.system)
        network = system.build_denoiser if system.stage == "denoiser" else system.configure_model
    with torch.device("meta"):
        network = network() or system
    assert sum(p.numel() for p in network.parameters()) > 0


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "notes.ckpt"
    path.write_text("nothing of the kind")
    with pytest.raises(UserError, match="no checkpoint"):
        find_checkpoint(str(path), tmp_path, "autoencoder")
    with pytest.raises(UserError, match="no such file"):
        find_checkpoint(str(tmp_path / "absent.ckpt"), tmp_path, "autoencoder")


def test_a_checkpoint_of_another_stage_is_refused(tmp_path):
    folder: Path = tmp_path / "checkpoints"
    folder.mkdir()
    content = {"relief": {"stage": "denoiser", "conventions": 1}, "state_dict": {}}
    torch.save(content, folder / "step-00000010.ckpt")
    with pytest.raises(UserError, match="of the stage denoiser"):
        find_checkpoint("auto", tmp_path, "autoencoder")
    assert find_checkpoint("auto", tmp_path, "denoiser") == folder / "step-00000010.ckpt"
