"""TAEF2, and loading autoencoders of every kind from folders, files and the hub."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderKLFlux2, AutoencoderTiny
from hub_server import serve
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save, save_file
from shared_assets import WEIGHTS, needs_weights
from test_latents import AUTOENCODERS
from torch import nn

from data_pipeline.contract import UserError
from modules.latents.autoencoder_files import load_autoencoder
from modules.latents.codec import decode_packed, encode_packed
from modules.latents.spec import fingerprint
from modules.latents.taef2 import TAEF2

KINDS = {
    "dc": AutoencoderDC,
    "kl": AutoencoderKL,
    "tiny": AutoencoderTiny,
    "flux2": AutoencoderKLFlux2,
    "taef2": TAEF2,
}


def small() -> TAEF2:
    torch.manual_seed(0)
    return TAEF2(latent_channels=6, width=8)


def published(autoencoder: TAEF2) -> dict[str, torch.Tensor]:
    """Return the weights as the hub has them."""
    return {
        ".layers.".join(name.split(".", 1)): tensor.half().contiguous()
        for name, tensor in autoencoder.state_dict().items()
    }


def halves(autoencoder: TAEF2, folder: Path) -> None:
    """Write the weights as the author's own code has them."""
    for half, offset in (("encoder", 0), ("decoder", 1)):
        weights = {}
        for name, tensor in getattr(autoencoder, half).state_dict().items():
            number, rest = name.split(".", 1)
            weights[f"{int(number) + offset}.{rest}"] = tensor.half().contiguous()
        save_file(weights, folder / f"taef2_{half}.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_loaded_from_its_folder_and_does_the_same(kind, tmp_path):
    torch.manual_seed(0)
    autoencoder = AUTOENCODERS[kind]().eval()
    autoencoder.save_pretrained(tmp_path / "pipeline" / "vae")
    loaded = load_autoencoder(tmp_path / "pipeline")  # its folder `vae` is found
    assert type(loaded) is KINDS[kind]
    assert fingerprint(loaded) == fingerprint(autoencoder)
    assert not loaded.training
    images = torch.rand(1, 3, 1, 3, 16, 16) * 2.0 - 1.0
    latents = encode_packed(loaded, images, 1)
    expected = decode_packed(autoencoder, encode_packed(autoencoder, images, 1), 1)
    torch.testing.assert_close(decode_packed(loaded, latents, 1), expected)
    assert expected.shape == images.shape


def test_taef2_is_the_same_from_one_file_and_from_two_halves(tmp_path):
    autoencoder = small()
    save_file(published(autoencoder), tmp_path / "taef2.safetensors")
    (tmp_path / "two").mkdir()
    halves(autoencoder, tmp_path / "two")
    paths = (tmp_path, tmp_path / "taef2.safetensors", tmp_path / "two")
    assert {fingerprint(load_autoencoder(path)) for path in paths} == {
        fingerprint(autoencoder.half())
    }


@contextmanager
def hub_of(files: dict[str, bytes], cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with serve(files) as hub:
        monkeypatch.setattr(
            "modules.latents.autoencoder_files.hf_hub_download",
            partial(hf_hub_download, endpoint=hub.endpoint, cache_dir=cache),
        )
        yield


def test_taef2_comes_from_the_hub_by_its_name(tmp_path, monkeypatch):
    autoencoder = small()
    files = {"/madebyollin/taef2/resolve/main/taef2.safetensors": save(published(autoencoder))}
    with hub_of(files, tmp_path, monkeypatch):
        loaded = load_autoencoder("madebyollin/taef2")
    assert fingerprint(loaded) == fingerprint(autoencoder.half())


def test_any_other_comes_from_a_folder_of_a_pipeline_on_the_hub(tmp_path, monkeypatch):
    torch.manual_seed(0)
    autoencoder = AUTOENCODERS["flux2"]()
    autoencoder.save_pretrained(tmp_path / "vae")
    files = {
        f"/lab/flux/resolve/main/vae/{path.name}": path.read_bytes()
        for path in (tmp_path / "vae").iterdir()
    }
    with hub_of(files, tmp_path / "cache", monkeypatch):
        assert fingerprint(load_autoencoder("lab/flux/vae")) == fingerprint(autoencoder)
        with pytest.raises(UserError, match="lab/flux/vae"):
            load_autoencoder("lab/flux")


@pytest.mark.parametrize("source", ["no_such_folder", "/no/such/folder", "a b/c"])
def test_what_is_nowhere_is_told(source, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="neither a folder or file here nor on the hub"):
        load_autoencoder(source)


def test_weights_of_something_else_and_damaged_ones_are_told(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    for name in ("other", "torn"):
        with pytest.raises(UserError, match="the weights cannot be read"):
            load_autoencoder(tmp_path / f"{name}.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "NoSuchClass"}))
    with pytest.raises(UserError, match="holds no autoencoder"):
        load_autoencoder(tmp_path)


def test_taef2_has_the_published_shape():
    with torch.device("meta"):
        autoencoder = TAEF2()
    assert sum(parameter.numel() for parameter in autoencoder.parameters()) == 2_677_027
    pooled = [name for name, module in autoencoder.named_modules() if name.endswith("pool")]
    assert [type(autoencoder.get_submodule(name)) for name in pooled] == [nn.Sequential] * 6


@needs_weights
def test_the_real_taef2_keeps_a_smooth_picture():
    autoencoder = load_autoencoder(WEIGHTS)
    x, y = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="xy")
    picture = torch.stack([x, y, (x + y) / 2.0])[None]
    latents = encode_packed(autoencoder, picture, 1)
    assert latents.shape == (1, 32, 8, 8)
    assert 0.2 < latents.std() < 1.5
    error = (decode_packed(autoencoder, latents, 1) - picture) / 2.0
    assert -10.0 * error.square().mean().log10() > 28.0  # dB


def test_a_hub_that_cannot_be_reached_is_asked_once_and_told(monkeypatch):
    asked = []

    def unreachable(repository: str, filename: str, **options: object) -> str:
        asked.append(filename)
        raise LocalEntryNotFoundError("cannot find the file on the Hub")

    monkeypatch.setattr("modules.latents.autoencoder_files.hf_hub_download", unreachable)
    with pytest.raises(UserError, match="the hub cannot be reached"):
        load_autoencoder("owner/name")
    assert asked == ["config.json"]
