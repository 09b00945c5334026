"""Every backbone class, loaded by our real path from a small model of the published structure."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import Flux2Transformer2DModel
from hydra.utils import instantiate
from safetensors.torch import load_file, save_file

from data_pipeline.command_line import compose
from data_pipeline.contract import UserError
from modules.networks.denoiser import JointDenoiser
from modules.networks.denoiser_files import BACKBONES, load_network, save_network
from modules.networks.weights_fingerprint import weights_fingerprint

PUBLISHED = {
    "flux2_klein": 3_875_544_576,
    "sd35m": 2_243_171_520,
    "flux1": 11_901_408_320,
}
"""Parameters of the published models, by the name of their denoiser config."""

SMALL: dict[str, dict[str, Any]] = {
    "flux2_klein": {
        "in_channels": 8, "num_layers": 1, "num_single_layers": 4, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 12, "axes_dims_rope": [4, 4, 4, 4],
        "timestep_guidance_channels": 16,
    },
    "sd35m": {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 3,
        "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 12,
        "caption_projection_dim": 32, "pooled_projection_dim": 6, "pos_embed_max_size": 12,
        "dual_attention_layers": [0, 1],
    },
    "flux1": {
        "in_channels": 8, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 12, "pooled_projection_dim": 6,
        "axes_dims_rope": [4, 6, 6],
    },
}  # fmt: skip
"""What is smaller in the small models; the rest is as published."""


def read_denoiser(name: str, *overrides: str) -> Any:
    return compose("train", [f"denoiser={name}", "shards=x", "latents=x", *overrides]).denoiser


def save_small(name: str, folder: Path, seed: int = 0, **sizes: Any) -> Path:
    """Save a small random model of a published structure as diffusers does."""
    build = instantiate(read_denoiser(name).backbone, _convert_="object")
    torch.manual_seed(seed)
    transformer_class = build.func.__self__.transformer_class
    transformer = transformer_class(**build.keywords["config"] | SMALL[name] | sizes)
    for parameter in transformer.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    transformer.save_pretrained(folder)
    return folder


def build(name: str, source: Path, *overrides: str) -> JointDenoiser:
    options = [f"denoiser.backbone.source={source}", "denoiser.num_views=2", *overrides]
    options.append("denoiser.backbone.dtype=float32")
    torch.manual_seed(1)
    return instantiate(read_denoiser(name, *options), _convert_="object")()


def make_inputs(denoiser: JointDenoiser) -> dict[str, torch.Tensor]:
    backbone, generator = denoiser.backbone, torch.Generator().manual_seed(2)
    draw = {"generator": generator}
    inputs = {
        "latents": torch.randn(2, 3, denoiser.num_views, backbone.channels, 2, 4, **draw),
        "timesteps": torch.rand(2, 3, **draw),
        "text": torch.randn(2, 5, backbone.text_width, **draw),
        "references": torch.randn(2, 1, backbone.channels, 2, 4, **draw),
    }
    if denoiser.layout == "tiled":
        inputs["timesteps"] = inputs["timesteps"][:, :1].expand(-1, 3)
    if denoiser.vision is not None:
        inputs["vision"] = torch.randn(2, 4, denoiser.vision.in_features, **draw)
    if backbone.pooled_width:
        inputs["pooled"] = torch.randn(2, backbone.pooled_width, **draw)
    return inputs


WAYS = {
    "mixture": ("denoiser.adapters.shared_rank=4", "denoiser.adapters.modality_rank=4"),
    "plain LoRA": ("denoiser.adapters.shared_rank=4", "denoiser.adapters.modality_rank=0"),
    "per modality only": ("denoiser.adapters.shared_rank=0", "denoiser.adapters.modality_rank=4"),
    "full": ("denoiser.adapters=null", "denoiser.text_timestep=mean"),
    "vision tokens": (
        "denoiser.adapters.shared_rank=4",
        "denoiser.adapters.modality_rank=4",
        "denoiser.vision_width=6",
    ),
    "tiled": ("denoiser.adapters.modality_rank=0", "denoiser.layout=tiled"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SMALL)
def test_a_loaded_backbone_trains_and_comes_back_from_its_export(name, way, tmp_path):
    denoiser = build(name, save_small(name, tmp_path / "pretrained/transformer"), *WAYS[way])
    inputs = make_inputs(denoiser)
    target = torch.randn(inputs["latents"].shape, generator=torch.Generator().manual_seed(3))
    trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.AdamW(trained, lr=3e-3), []
    for _ in range(8):
        optimizer.zero_grad()
        loss = (denoiser(**inputs) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    assert all(parameter.grad is not None for parameter in trained)
    (tmp_path / "export").mkdir()
    told = json.loads(json.dumps(save_network(tmp_path / "export", denoiser)))
    assert (tmp_path / "export/transformer").is_dir() == (way == "full")
    assert torch.equal(load_network(tmp_path / "export", told)(**inputs), denoiser(**inputs))


@pytest.mark.parametrize("name", SMALL)
def test_new_vision_tokens_are_a_longer_text_and_without_them_nothing_changes(name, tmp_path):
    source = save_small(name, tmp_path)
    plain, seeing = (build(name, source, *WAYS[way]) for way in ("mixture", "vision tokens"))
    inputs = make_inputs(seeing)
    vision = inputs.pop("vision")
    before = plain(**inputs)
    assert torch.equal(seeing(**inputs), before)
    after = seeing(**inputs, vision=vision)
    zeros = torch.zeros(2, vision.shape[1], inputs["text"].shape[2])
    text = torch.cat([inputs["text"], zeros], dim=1)
    assert torch.equal(after, plain(**inputs | {"text": text}))
    moved = (after - before).square().mean().sqrt() / before.square().mean().sqrt()
    assert 0.0 < moved < 0.5  # near the pretrained model's prediction, and not equal to it
    after.square().mean().backward()
    assert seeing.vision.weight.grad.abs().amax(dim=1).min() > 0.0


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_stays_within_a_twentieth_of_the_float32_prediction(name, tmp_path):
    source = save_small(name, tmp_path)
    exact, rough = build(name, source), build(name, source)
    for parameter in rough.backbone.transformer.parameters():
        if not parameter.requires_grad:  # experts stay in float32, as in the experiments
            parameter.data = parameter.data.bfloat16()
    inputs = make_inputs(exact)
    expected, output = exact(**inputs), rough(**inputs)
    assert output.dtype == torch.float32
    assert (output - expected).norm() / expected.norm() < 0.05


@pytest.mark.parametrize("name", SMALL)
def test_permuting_views_with_their_cameras_permutes_the_output_in_its_own_row(name, tmp_path):
    denoiser = build(name, save_small(name, tmp_path))
    torch.nn.init.normal_(denoiser.view_embedding, std=0.1)
    inputs, order = make_inputs(denoiser), torch.tensor([[0, 1], [1, 0]])
    plain = denoiser(**inputs)
    latents = inputs["latents"].clone()
    latents[1] = latents[1].flip(1)  # of row 1 alone
    moved = denoiser(**inputs | {"latents": latents}, views=order)
    torch.testing.assert_close(moved[0], plain[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved[1].flip(1), plain[1], rtol=1e-4, atol=1e-4)
    only_cameras = denoiser(**inputs, views=order)
    assert (only_cameras[1] - plain[1]).abs().max() > 1e-3
    torch.testing.assert_close(only_cameras[0], plain[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_the_small_model_has_the_published_switches(name, tmp_path):
    published = instantiate(read_denoiser(name).backbone, _convert_="object").keywords["config"]
    small = json.loads((save_small(name, tmp_path) / "config.json").read_text())
    assert set(SMALL[name]) <= set(small)
    assert {k: small[k] for k in published if k not in SMALL[name]} == {
        k: v for k, v in published.items() if k not in SMALL[name]
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_size_builds_on_the_meta_device(name):
    with torch.device("meta"):
        denoiser = instantiate(read_denoiser(name), _convert_="object")()
    frozen = [p for p in denoiser.backbone.transformer.parameters() if not p.requires_grad]
    assert sum(parameter.numel() for parameter in frozen) == PUBLISHED[name]
    assert {p.device.type for p in denoiser.parameters()} == {"meta"}
    assert {p.dtype for p in frozen} == {torch.bfloat16}
    inputs = {name: tensor.to("meta") for name, tensor in make_inputs(denoiser).items()}
    assert denoiser(**inputs).shape == inputs["latents"].shape


def test_on_the_meta_device_a_folder_says_itself_how_large_it_is(tmp_path):
    source = save_small("flux2_klein", tmp_path)
    with torch.device("meta"):
        denoiser = build("flux2_klein", source)
    assert denoiser.channels == SMALL["flux2_klein"]["in_channels"]


def test_a_folder_may_be_a_whole_pipeline_or_its_transformer(tmp_path):
    source = save_small("flux2_klein", tmp_path / "pipeline/transformer")
    inputs = make_inputs(build("flux2_klein", source))
    first, second = (build("flux2_klein", each)(**inputs) for each in (source, source.parent))
    assert torch.equal(first, second)


def test_a_folder_of_another_class_is_refused(tmp_path):
    source = save_small("flux2_klein", tmp_path)
    config = json.loads((source / "config.json").read_text())
    config["_class_name"] = "SD3Transformer2DModel"
    (source / "config.json").write_text(json.dumps(config))
    message = "holds a SD3Transformer2DModel, and Flux2Backbone runs a Flux2Transformer2DModel"
    with pytest.raises(UserError, match=message):
        build("flux2_klein", source)


def test_a_folder_without_a_transformer_or_with_half_of_one_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no transformer: give the folder of a diffusers"):
        build("flux2_klein", tmp_path)
    source = save_small("flux2_klein", tmp_path / "model")
    weights = source / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["proj_out.weight"]
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(UserError, match=r"no weights of proj_out\.weight"):
        build("flux2_klein", source)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cannot load .*model"):
        build("flux2_klein", source)
    weights.unlink()
    with pytest.raises(UserError, match=r"cannot load .*model"):
        build("flux2_klein", source)


def test_a_hub_model_out_of_reach_is_told_as_such(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"cannot load nobody/nothing .*this machine can reach"):
        build("flux2_klein", Path("nobody/nothing"))


def test_an_export_whose_pretrained_backbone_is_gone_says_so(tmp_path):
    source = save_small("flux2_klein", tmp_path / "pretrained")
    (tmp_path / "export").mkdir()
    told = save_network(tmp_path / "export", build("flux2_klein", source))
    source.rename(tmp_path / "moved")
    file = tmp_path / "export" / "denoiser.json"
    with pytest.raises(UserError, match=rf"cannot load .*by network\.origin\.source in {file}"):
        load_network(tmp_path / "export", copy.deepcopy(told))


def test_an_export_is_found_from_another_working_directory(tmp_path, monkeypatch):
    save_small("flux2_klein", tmp_path / "pretrained")
    monkeypatch.chdir(tmp_path)
    denoiser = build("flux2_klein", Path("pretrained"))
    (tmp_path / "export").mkdir()
    told = save_network(tmp_path / "export", denoiser)
    monkeypatch.chdir(tmp_path / "export")
    inputs = make_inputs(denoiser)
    assert torch.equal(load_network(tmp_path / "export", told)(**inputs), denoiser(**inputs))


def test_an_export_whose_pretrained_backbone_became_another_is_refused(tmp_path):
    source = save_small("flux2_klein", tmp_path / "pretrained")
    (tmp_path / "export").mkdir()
    denoiser = build("flux2_klein", source)
    told = json.loads(json.dumps(save_network(tmp_path / "export", denoiser)))
    inputs = make_inputs(denoiser)
    # The same weights in many files: the same model.
    Flux2Transformer2DModel.from_pretrained(source).save_pretrained(source, max_shard_size="20KB")
    (source / "diffusion_pytorch_model.safetensors").unlink()
    assert len(list(source.glob("*.safetensors"))) > 3
    assert torch.equal(load_network(tmp_path / "export", told)(**inputs), denoiser(**inputs))
    shutil.rmtree(source)
    save_small("flux2_klein", source, seed=1)
    with pytest.raises(UserError, match=r"pretrained holds other weights .* bring those back"):
        load_network(tmp_path / "export", told)
    del told["origin"]["fingerprint"]  # as exports of before say nothing
    load_network(tmp_path / "export", told)


def test_a_fingerprint_names_the_weights_in_every_dtype_and_tells_others(tmp_path):
    model = Flux2Transformer2DModel.from_pretrained(save_small("flux2_klein", tmp_path))
    before = weights_fingerprint(model)
    assert before == weights_fingerprint(copy.deepcopy(model).to(torch.bfloat16))
    found = {before}
    # Any layer that was trained on, each in its own way: equal ones are not told apart by name.
    for i, (name, parameter) in enumerate(model.named_parameters(), start=1):
        changed = copy.deepcopy(model)
        changed.get_parameter(name).data += 0.05 * i * parameter.abs().max()
        found.add(weights_fingerprint(changed))
    assert len(found) == 1 + len(list(model.parameters()))
    renamed = torch.nn.ParameterList([p.clone() for p in reversed(list(model.parameters()))])
    renamed.register_buffer("positions", torch.arange(8))  # as versions of a library may differ
    assert weights_fingerprint(renamed) == before
    assert weights_fingerprint(model.to("meta")) is None


def test_exports_from_before_backbones_could_be_chosen_still_load(tmp_path):
    source = save_small("flux2_klein", tmp_path / "pretrained")
    denoiser = build("flux2_klein", source, "denoiser.adapters=null")
    save_network(tmp_path, denoiser)
    loaded = load_network(tmp_path, {})
    assert isinstance(loaded.backbone.transformer, Flux2Transformer2DModel)
    inputs = make_inputs(denoiser)
    assert torch.equal(loaded(**inputs), denoiser(**inputs))


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_knows_the_shift_of_its_pretraining(name):
    shifts = {
        "Flux2Backbone": (5.0, 10.0),
        "Sd3Backbone": (3.0, 3.0),
        "Flux1Backbone": (1.87, 1.88),  # exp(.5 + .65 (1024 - 256) / (4096 - 256))
    }
    low, high = shifts[name]
    backbone = BACKBONES[name].__new__(BACKBONES[name])
    assert low <= backbone.sampling_shift(1024, 28) <= high
