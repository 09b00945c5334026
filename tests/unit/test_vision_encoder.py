"""Vision tokens are those of the real classes of transformers, of whole images."""

import inspect
import json
from typing import Any

import pytest
import torch
import transformers
from hydra.utils import instantiate
from tiny_vision import BUILD, MEAN, NUM_TOKENS, SIDE_PX, SIZES, STD, WIDTH, save_vision
from transformers import CLIPConfig, CLIPModel, SiglipVisionConfig, SiglipVisionModel

from data_pipeline.command_line import CONFIG_DIR, compose
from data_pipeline.contract import UserError
from modules.networks.vision_encoder import LEADING_TOKENS, VisionEncoder


def load(kind, folder, **options) -> VisionEncoder:
    return VisionEncoder(str(folder), kind=kind, dtype="float32", **options)


@pytest.mark.parametrize("kind", LEADING_TOKENS)
def test_tokens_are_the_models_own_behind_its_class_token_at_unit_deviation(kind, tmp_path):
    encoder = load(kind, save_vision(kind, tmp_path))
    images = torch.rand(2, 3, 3, SIDE_PX, SIDE_PX) * 2.0 - 1.0
    tokens = encoder.embed(images)
    assert tokens.shape == (2, 3, NUM_TOKENS, WIDTH) == (2, 3, encoder.num_tokens, encoder.width)
    model = BUILD[kind]().eval()
    model.load_state_dict(encoder.model.state_dict())
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    pixels = ((images[1, 2] + 1.0) / 2.0 - mean) / std
    every = model(pixel_values=pixels[None]).last_hidden_state[0, -NUM_TOKENS:]
    expected = (every - every.mean(-1, keepdim=True)) / every.std(-1, correction=0, keepdim=True)
    torch.testing.assert_close(tokens[1, 2], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", LEADING_TOKENS)
def test_images_are_resized_whole_whatever_their_size(kind, tmp_path):
    encoder = load(kind, save_vision(kind, tmp_path))
    smooth = torch.linspace(-0.9, 0.9, 4 * SIDE_PX).expand(1, 3, 4 * SIDE_PX, -1)
    small = torch.nn.functional.avg_pool2d(smooth, 4)
    torch.testing.assert_close(encoder.embed(smooth), encoder.embed(small), rtol=0.1, atol=0.1)
    corner = smooth.clone()
    corner[..., :4, :4] = 1.0  # which a central crop would cut off
    assert (encoder.embed(corner) - encoder.embed(smooth)).abs().max() > 0.01


@pytest.mark.parametrize("name", [file.stem for file in (CONFIG_DIR / "vision").glob("*.yaml")])
def test_every_config_names_a_known_kind_and_only_what_an_encoder_takes(name):
    config = compose("encode", ["shards=x", "autoencoder=x", "out=x", f"vision={name}"])
    build = instantiate(config.vision, _convert_="object")
    inspect.signature(VisionEncoder).bind(**build.keywords)
    assert build.keywords["kind"] in LEADING_TOKENS


def test_patches_need_not_fill_the_image(tmp_path):
    # As google/siglip-so400m-patch14-384: 384 = 27 * 14 + 6, which is 729 tokens.
    sizes: Any = SIZES | {"image_size": 20}
    SiglipVisionModel(SiglipVisionConfig(**sizes, intermediate_size=32)).save_pretrained(tmp_path)
    content = {"size": {"height": 20, "width": 20}, "image_mean": MEAN, "image_std": STD}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    encoder = load("SiglipVisionModel", tmp_path)
    images = torch.rand(2, 3, 32, 32)
    assert encoder.embed(images).shape == (2, encoder.num_tokens, WIDTH) == (2, 4, WIDTH)


def test_a_relative_path_is_found_from_anywhere(tmp_path, monkeypatch):
    save_vision("Dinov2Model", tmp_path / "dino")
    monkeypatch.chdir(tmp_path)
    encoder = load("Dinov2Model", "dino")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert VisionEncoder(**encoder.config).config == encoder.config


@pytest.mark.parametrize("source", ["/no/model", "./model", "../model", "data/models/dino"])
def test_what_can_only_be_a_path_is_not_asked_of_the_hub(source, monkeypatch):
    monkeypatch.setattr(transformers.Dinov2Model, "from_pretrained", None)
    with pytest.raises(UserError, match=r"there is no such file or folder.*vision\.source"):
        load("Dinov2Model", source)


def test_it_stays_frozen_and_is_found_again_by_its_config(tmp_path):
    encoder = load("SiglipVisionModel", save_vision("SiglipVisionModel", tmp_path / "a"))
    encoder.train()
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    images = torch.rand(1, 3, 8, 8)
    again = VisionEncoder(**json.loads(json.dumps(encoder.config)))
    assert torch.equal(again.embed(images), encoder.embed(images))
    save_vision("SiglipVisionModel", tmp_path / "a", seed=1)
    with pytest.raises(UserError, match="holds other weights"):
        VisionEncoder(**encoder.config)


def test_the_vision_part_of_a_whole_clip_is_taken(tmp_path):
    vision = save_vision("CLIPVisionModel", tmp_path / "vision")
    text = {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 40,
        "intermediate_size": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
    }  # fmt: skip
    encoder = load("CLIPVisionModel", vision)
    config = encoder.model.config.to_dict()
    whole = CLIPModel(CLIPConfig(text_config=text, vision_config=config, projection_dim=8))
    whole.vision_model.load_state_dict(
        {name.removeprefix("vision_model."): x for name, x in encoder.model.state_dict().items()}
    )
    whole.save_pretrained(tmp_path / "whole")
    (tmp_path / "whole/preprocessor_config.json").write_bytes(
        (vision / "preprocessor_config.json").read_bytes()
    )
    images = torch.rand(1, 3, 8, 8)
    assert torch.equal(
        load("CLIPVisionModel", tmp_path / "whole").embed(images), encoder.embed(images)
    )


def test_sources_that_are_no_vision_encoder_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"vision\.kind=ResNet must be one of SiglipVisionModel"):
        VisionEncoder("x", kind="ResNet")
    with pytest.raises(UserError, match=r"cannot load .*empty.*vision\.source"):
        load("SiglipVisionModel", tmp_path / "empty")
    folder = save_vision("Dinov2Model", tmp_path / "dino")
    with pytest.raises(UserError, match=r"holds no weights of .*vision\.kind"):
        load("CLIPVisionModel", folder)
    preprocessing = folder / "preprocessor_config.json"
    preprocessing.unlink()
    with pytest.raises(UserError, match=r"cannot read how .* takes images"):
        load("Dinov2Model", folder)
