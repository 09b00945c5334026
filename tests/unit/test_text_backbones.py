"""Text models of the real classes, tiny and random, against diffusers' own pipelines."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_text import save_flux1, save_qwen3, save_sd3
from transformers import Qwen2Tokenizer, Qwen3ForCausalLM

from data_pipeline.contract import UserError
from modules.networks.text_backbones import Flux1Text, PretrainedText, Qwen3Text, Sd3Text, load_text
from modules.networks.text_cache import CachedText, write_text_cache

CAPTIONS = ["a red chair", "", "mug"]
FLOAT = {"dtype": "float32"}


def test_qwen3_embeds_as_the_pipeline_of_klein_does(tmp_path):
    from diffusers import Flux2KleinPipeline

    layers = (1, 2, 3)
    source = str(save_qwen3(tmp_path))
    tokens, pooled = Qwen3Text(source, layers=layers, length=64, **FLOAT).embed(CAPTIONS)
    expected = Flux2KleinPipeline._get_qwen3_prompt_embeds(
        Qwen3ForCausalLM.from_pretrained(tmp_path / "text_encoder"),
        Qwen2Tokenizer.from_pretrained(tmp_path / "tokenizer"),
        CAPTIONS,
        max_sequence_length=64,
        hidden_states_layers=list(layers),
    )
    assert tokens.shape == (3, 64, 48)
    assert pooled is None
    torch.testing.assert_close(tokens, expected, rtol=0, atol=0)
    assert (tokens[0] - tokens[2]).abs().max() > 1e-3


def test_flux1_embeds_as_its_pipeline_does(tmp_path):
    from diffusers import FluxPipeline

    source = str(save_flux1(tmp_path))
    text = Flux1Text(source, length=20, **FLOAT)
    tokens, pooled = text.embed(CAPTIONS)
    parts = {**text.tokenizers, **text.models}
    pipeline = FluxPipeline(
        scheduler=None, vae=None, transformer=None, text_encoder=text.models["text_encoder"],
        tokenizer=text.tokenizers["text_encoder"], text_encoder_2=parts["text_encoder_2"],
        tokenizer_2=text.tokenizers["text_encoder_2"],
    )  # fmt: skip
    expected, expected_pooled, _ = pipeline.encode_prompt(
        CAPTIONS, CAPTIONS, device="cpu", max_sequence_length=20
    )
    assert (tokens.shape, pooled.shape) == ((3, 20, 40), (3, 16))
    torch.testing.assert_close(tokens, expected, rtol=0, atol=0)
    torch.testing.assert_close(pooled, expected_pooled, rtol=0, atol=0)


def test_sd3_embeds_as_its_pipeline_does(tmp_path):
    from diffusers import StableDiffusion3Pipeline

    text = Sd3Text(str(save_sd3(tmp_path)), length=20, **FLOAT)
    tokens, pooled = text.embed(CAPTIONS)
    pipeline = StableDiffusion3Pipeline(
        transformer=None, scheduler=None, vae=None, **text.models,
        **{k.replace("text_encoder", "tokenizer"): t for k, t in text.tokenizers.items()},
    )  # fmt: skip
    expected, _, expected_pooled, _ = pipeline.encode_prompt(
        CAPTIONS, CAPTIONS, CAPTIONS, device="cpu", max_sequence_length=20,
        do_classifier_free_guidance=False,
    )  # fmt: skip
    assert (tokens.shape, pooled.shape) == ((3, 77 + 20, 40), (3, 16))
    torch.testing.assert_close(tokens, expected, rtol=0, atol=0)
    torch.testing.assert_close(pooled, expected_pooled, rtol=0, atol=0)


def test_it_stays_frozen_and_without_dropout_while_others_train(tmp_path):
    text = Flux1Text(str(save_flux1(tmp_path)), length=20, **FLOAT)
    torch.nn.ModuleList([text]).train()
    assert torch.equal(text.embed(CAPTIONS)[0], text.embed(CAPTIONS)[0])
    assert not any(p.requires_grad for p in text.parameters())


def test_longer_captions_are_cut_with_a_warning_and_a_count(tmp_path, caplog):
    text = Qwen3Text(str(save_qwen3(tmp_path)), layers=[1], length=40, **FLOAT)
    long = "a chair " * 10
    with caplog.at_level(logging.WARNING):
        text.embed(["mug", long])
        text.embed([long, "chair"])
        text.embed([long + "b"])
    ours = [r for r in caplog.records if r.name == "modules.networks.text_cuts"]
    messages = [record.getMessage() for record in ours]
    assert [message[:58] for message in messages] == [
        "1 captions are longer than 40 tokens and are cut (1 so far",
        "1 captions are longer than 40 tokens and are cut (2 so far",
    ]
    assert len(text.cut) == 2


def test_cached_embeddings_are_those_of_the_model_and_are_computed_once(tmp_path, monkeypatch):
    text = Flux1Text(str(save_flux1(tmp_path / "model")), length=20)  # in bfloat16
    assert write_text_cache(tmp_path / "text", text, ["mug", "mug", "a red chair"], 2) == 3
    found, expected = CachedText(str(tmp_path / "text")).embed(CAPTIONS), text.embed(CAPTIONS)
    for cached, embedded in zip(found, expected, strict=True):
        assert cached.dtype == torch.bfloat16
        torch.testing.assert_close(cached, embedded, rtol=2e-2, atol=2e-2)  # of other batch sizes
    monkeypatch.setattr(PretrainedText, "embed", None)
    assert write_text_cache(tmp_path / "text", text, ["mug"], 2) == 0


def test_caches_that_do_not_fit_are_refused(tmp_path):
    text = Qwen3Text(str(save_qwen3(tmp_path / "model")), layers=[1], length=64, **FLOAT)
    write_text_cache(tmp_path / "text", text, [], 2)
    with pytest.raises(UserError, match="no embedding of the caption 'mug'"):
        CachedText(str(tmp_path / "text")).embed(["mug"])
    other = Qwen3Text(str(tmp_path / "model"), layers=[2], length=64, **FLOAT)
    with pytest.raises(UserError, match="text of another model or length"):
        write_text_cache(tmp_path / "text", other, [], 2)
    with pytest.raises(UserError, match="holds no text embeddings"):
        CachedText(str(tmp_path))


def test_sources_without_text_models_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot load tokenizer of"):
        Qwen3Text(str(tmp_path))
    save_qwen3(tmp_path)
    weights = tmp_path / "text_encoder" / "model.safetensors"
    kept = {k: v for k, v in load_file(weights).items() if "layers.2" not in k}
    save_file(kept, weights, {"format": "pt"})
    with pytest.raises(UserError, match=r"no weights of .*layers\.2"):
        Qwen3Text(str(tmp_path))


def test_a_text_model_is_found_again_by_what_its_config_says(tmp_path):
    text = Qwen3Text(str(save_qwen3(tmp_path)), layers=[1, 3], length=64, **FLOAT)
    again = load_text(text.config)
    assert torch.equal(again.embed(["mug"])[0], text.embed(["mug"])[0])
    assert again.unknown_words("mug") == []


def test_other_weights_under_the_same_name_are_refused(tmp_path):
    text = Flux1Text(str(save_flux1(tmp_path / "model")), length=20, **FLOAT)
    write_text_cache(tmp_path / "cache", text, CAPTIONS, 2)
    record = tmp_path / "cache/text.json"
    content = json.loads(record.read_text())
    del content["text_encoder"]["fingerprint"]
    record.write_text(json.dumps(content))  # as caches of before were
    assert write_text_cache(tmp_path / "cache", text, CAPTIONS, 2) == 0
    named = json.loads(record.read_text())["text_encoder"]
    assert named["fingerprint"] == text.config["fingerprint"]  # and is known from now on
    shutil.copytree(tmp_path / "model", tmp_path / "moved")
    moved = Flux1Text(str(tmp_path / "moved"), length=20, **FLOAT)
    assert write_text_cache(tmp_path / "cache", moved, CAPTIONS, 2) == 0  # the same weights
    shutil.rmtree(tmp_path / "model")
    save_flux1(tmp_path / "model", seed=1)
    with pytest.raises(UserError, match="model holds other weights"):
        load_text(text.config)
    other = Flux1Text(str(tmp_path / "model"), length=20, **FLOAT)
    with pytest.raises(UserError, match="holds text of another model"):
        write_text_cache(tmp_path / "cache", other, CAPTIONS, 2)
