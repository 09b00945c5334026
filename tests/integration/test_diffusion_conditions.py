"""Conditions by pretrained models: captions, vision tokens and several references."""

import shutil

import pytest
import torch
import trimesh
from ball_road import RESOLUTION_PX, SMALL, encode_arguments, make_sample, read_metrics, train_stage
from PIL import Image
from tiny_text import save_qwen3
from tiny_vision import NUM_TOKENS, WIDTH, save_vision

import encode
import generate
from data_pipeline.command_line import compose
from data_pipeline.contract import UserError
from data_pipeline.loading.samples import LatentDataset, decode_sample
from modules.latents.cache import read_cache
from modules.networks.vision_encoder import VisionEncoder
from modules.pipelines.generation import TextTo25D


def test_captions_embedded_by_a_pretrained_text_model_train_and_generate(runs, shards, tmp_path):
    save_qwen3(tmp_path / "klein")
    pretrained = [f"conditioner.source={tmp_path}/klein", "conditioner.dtype=float32"]
    pretrained += ["+conditioner.layers=[1,2,3]", "conditioner.length=48"]
    encode.main(
        compose(
            "encode",
            [
                *encode_arguments(tmp_path / "latents", shards, runs),
                "conditioner=qwen3",
                *pretrained,
            ],
        )
    )
    # three captions are trained on, of two each; and the null caption
    assert len(list((tmp_path / "latents" / "text").glob("*.safetensors"))) == 4
    shutil.copytree(runs / "pipeline" / "autoencoder", tmp_path / "pipeline" / "autoencoder")
    options = [f"latents={tmp_path}/latents", "conditioner=cached", *SMALL]
    wide = "denoiser.joint_attention_dim=48"
    train_stage(
        "latent_diffusion", 2, tmp_path, "run", *options, wide,
        "system.image_share=0.9", "system.sampling_shift=null",
    )  # fmt: skip
    exported = tmp_path / "pipeline" / "denoiser"
    assert not (exported / "text_encoder.safetensors").exists()
    pipeline = TextTo25D.from_pretrained(tmp_path / "pipeline")
    reference = torch.zeros(3, RESOLUTION_PX, RESOLUTION_PX)
    images = pipeline(
        ["a red ball", "what no training caption said"], [0, 1], steps=2,
        references=[[reference], []], solver="heun",
    )  # fmt: skip
    assert torch.isfinite(images).all()
    with pytest.raises(UserError, match="48 numbers a token and None of the whole"):
        train_stage(
            "latent_diffusion", 1, tmp_path, "narrow", *options, "denoiser.joint_attention_dim=32"
        )
    (tmp_path / "klein").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"by text_encoder\.source in .*denoiser/denoiser\.json"):
        TextTo25D.from_pretrained(tmp_path / "pipeline")


def test_vision_tokens_and_several_references_train_and_generate(runs, shards, tmp_path, capsys):
    save_vision("Dinov2Model", tmp_path / "dino")
    arguments = [
        *encode_arguments(tmp_path / "latents", shards, runs), "vision=dinov2",
        f"vision.source={tmp_path}/dino", "vision.dtype=float32",
    ]  # fmt: skip
    encode.main(compose("encode", arguments))
    shutil.copytree(tmp_path / "dino", tmp_path / "copy")
    capsys.readouterr()
    encode.main(compose("encode", [*arguments, f"vision.source={tmp_path}/copy"]))
    assert "encoded already" in capsys.readouterr().out  # the same weights
    told = read_cache(tmp_path / "latents")["vision"]
    assert (told["width"], told["num_tokens"]) == (WIDTH, NUM_TOKENS)
    assert "vision" not in LatentDataset(tmp_path / "latents", keep_decoded=False)[(1, 1)]
    shown = LatentDataset(tmp_path / "latents", keep_decoded=False, vision_width=WIDTH)
    sample = shown[(1, 1)]
    rendered = decode_sample(make_sample("ball_1", "green", 0.33))["images"]
    encoder = VisionEncoder(**told["encoder"])
    torch.testing.assert_close(
        sample["vision"].float(), encoder.embed(rendered[0]), rtol=1e-2, atol=1e-2
    )
    shutil.copytree(runs / "pipeline" / "autoencoder", tmp_path / "pipeline" / "autoencoder")
    seeing = [f"latents={tmp_path}/latents", *SMALL, "system.image_share=0.9"]
    seeing += ["system.num_references=2", f"denoiser.vision_width={WIDTH}"]
    metrics = read_metrics(train_stage("latent_diffusion", 3, tmp_path, "run", *seeing))
    assert float(metrics[-1]["val/probe/vision"]) > 0.0
    pipeline = TextTo25D.from_pretrained(tmp_path / "pipeline")
    assert pipeline.denoiser.vision.weight.abs().max() > 0.0  # it began at zero
    # three steps of training move little: the last layer, zero at first, is made loud
    torch.nn.init.normal_(pipeline.denoiser.backbone.transformer.proj_out.weight, std=0.2)
    references = [[rendered[0, 0], rendered[0, 3]], [rendered[0, 0]], []]
    images = pipeline([""] * 3, [0] * 3, steps=2, references=references)
    for first, second in ((0, 1), (1, 2)):
        assert (images[first] - images[second]).abs().max() > 1e-4
    for row, pictures in enumerate(references):
        alone = pipeline([""], [0], steps=2, references=[pictures])
        torch.testing.assert_close(alone[0], images[row], rtol=1e-3, atol=1e-3)
    trimesh.creation.icosphere(subdivisions=2).export(tmp_path / "ball.obj")
    Image.new("RGBA", (50, 30), (200, 40, 40, 255)).save(tmp_path / "a red, one.png")
    arguments = [
        f"mesh={tmp_path}/ball.obj", f"image={tmp_path}/a red, one.png", "steps=2", "solver=heun",
        "guidance_interval=[0.2,0.9]", f"checkpoint={tmp_path}/pipeline", "texture_px=64",
        f"out={tmp_path}/ball.glb",
    ]  # fmt: skip
    generate.main(compose("generate", arguments))
    assert (tmp_path / "ball.glb").is_file()
    with pytest.raises(UserError, match="without reference images and cannot follow any"):
        generate.main(compose("generate", [*arguments, f"checkpoint={runs}/pipeline"]))
    for wrong, said in (
        (f"latents={runs}/latents", "holds no vision tokens: encode with vision="),
        ("denoiser.vision_width=5", f"set denoiser.vision_width={WIDTH}"),
        ("system.image_share=0", "training shows none: set"),
    ):
        with pytest.raises(UserError, match=said):
            train_stage("latent_diffusion", 1, tmp_path, "wrong", *seeing, wrong)
    (tmp_path / "dino").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"by vision_encoder\.source in .*denoiser/denoiser\.json"):
        TextTo25D.from_pretrained(tmp_path / "pipeline")
