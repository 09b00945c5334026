"""Every backbone with its own text models and autoencoder samples the same after its export."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2
from test_backbones import WAYS, build, save_small
from tiny_text import save_flux1, save_qwen3, save_sd3
from tiny_vision import NUM_TOKENS, WIDTH, save_vision

from modules.latents.autoencoder_files import load_autoencoder
from modules.latents.cache import own_spec
from modules.latents.codec import LatentCodec, encode_packed
from modules.latents.raw_parts import RawPart
from modules.networks.denoiser_files import save_denoiser
from modules.networks.text_backbones import Flux1Text, PretrainedText, Qwen3Text, Sd3Text
from modules.networks.vision_encoder import VisionEncoder
from modules.pipelines.generation import TextTo25D
from modules.pipelines.sampling_options import Sampling

FLOAT = {"dtype": "float32"}
KL = {
    "block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 4,
}  # fmt: skip
TEXTS = {
    "flux2_klein": lambda folder: Qwen3Text(
        str(save_qwen3(folder)), layers=[1, 2, 3], length=40, **FLOAT
    ),
    "sd35m": lambda folder: Sd3Text(str(save_sd3(folder)), length=20, **FLOAT),
    "flux1": lambda folder: Flux1Text(str(save_flux1(folder)), length=20, **FLOAT),
}
TEXT_SIZES = {  # of the embeddings of these text models
    "flux2_klein": {"joint_attention_dim": 48},
    "sd35m": {"joint_attention_dim": 40, "pooled_projection_dim": 16},
    "flux1": {"joint_attention_dim": 40, "pooled_projection_dim": 16},
}
AUTOENCODERS = {  # latent channels x 2 x 2 are the backbone's
    "flux2_klein": lambda: AutoencoderKLFlux2(**KL, latent_channels=2),
    "sd35m": lambda: AutoencoderKL(
        **KL, latent_channels=4, scaling_factor=1.5305, shift_factor=0.0609
    ),
    "flux1": lambda: AutoencoderKL(
        **KL, latent_channels=2, scaling_factor=0.3611, shift_factor=0.1159
    ),
}
PROMPTS, SEEDS = ["a red chair", ""], [3, 4]


class Parts:
    """What a pipeline of one backbone is made of, all pretrained parts saved in a folder."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.text: PretrainedText = TEXTS[name](folder / "pretrained")
        save_small(name, folder / "pretrained/transformer", **TEXT_SIZES[name])
        torch.manual_seed(0)
        AUTOENCODERS[name]().save_pretrained(folder / "pipeline/autoencoder")
        autoencoder = load_autoencoder(folder / "pipeline/autoencoder")
        images = torch.rand(2, 3, 2, 3, 16, 16) * 2.0 - 1.0
        latents = encode_packed(autoencoder, images, 2)
        coverage = torch.zeros(latents[:, 0, :, 0].shape)
        spec = own_spec([RawPart(["a"] * 2, [[]] * 2, latents, coverage)], autoencoder)
        self.codec = LatentCodec(autoencoder, spec)
        self.latents = self.codec.encode(images)

    def pipeline(self, *overrides: str, **options) -> TextTo25D:
        denoiser = build(self.name, self.folder / "pretrained", *overrides).eval()
        options = {"prediction": "velocity", "shift": None, "num_references": 1} | options
        return TextTo25D(self.codec, denoiser, self.text, **options)

    def export(self, pipeline: TextTo25D) -> TextTo25D:
        """Return the pipeline that comes back from an export of this one."""
        folder, vision = self.folder / "pipeline/denoiser", pipeline.vision_encoder
        folder.mkdir()
        sampling = {"prediction": "velocity", "shift": None, "num_references": 1}
        vision_config = None if vision is None else vision.config
        save_denoiser(folder, pipeline.denoiser, self.text, sampling, None, vision_config)
        self.codec.spec.save(folder)
        return TextTo25D.from_pretrained(folder.parent)


def sample(pipeline: TextTo25D, **options) -> torch.Tensor:
    references = [[torch.full((3, 16, 16), 0.5)], []]
    return pipeline(PROMPTS, SEEDS, steps=2, guidance=2.0, references=references, **options)


@pytest.mark.parametrize("name", TEXTS)
def test_new_adapters_change_no_sample_and_trained_ones_come_back_with_their_export(name, tmp_path):
    parts = Parts(name, tmp_path)
    adapted = parts.pipeline(*WAYS["mixture"])
    geometry = [torch.rand(3, 2, 3, 16, 16) * 2.0 - 1.0, None]
    for held in (None, geometry):
        before = sample(parts.pipeline("denoiser.adapters=null"), geometry=held)
        assert torch.equal(sample(adapted, geometry=held), before)
    denoiser = adapted.denoiser
    trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    told = adapted.conditions(PROMPTS, [[], []])
    for _ in range(3):
        optimizer.zero_grad()
        times = torch.rand(2, 3)
        output = denoiser(parts.latents, times, told.text, **told.options)
        output.square().mean().backward()
        optimizer.step()
    after = sample(adapted, geometry=geometry)
    assert (after - before).abs().max() > 1e-3
    again = parts.export(adapted)
    assert torch.equal(sample(again, geometry=geometry), after)
    assert torch.equal(after[0, 1:], geometry[0][1:])  # held clean


@pytest.mark.parametrize("name", TEXTS)
def test_vision_tokens_and_references_reach_every_backbone(name, tmp_path):
    parts = Parts(name, tmp_path)
    encoder = VisionEncoder(str(save_vision("SiglipVisionModel", tmp_path / "siglip")), **FLOAT)
    seeing = parts.pipeline(
        "denoiser.adapters=null", f"denoiser.vision_width={WIDTH}", vision_encoder=encoder
    )
    torch.nn.init.normal_(seeing.denoiser.vision.weight, std=0.5)
    told = seeing.conditions(PROMPTS, [[torch.zeros(3, 16, 16)], []])
    assert told.vision.shape == (2, NUM_TOKENS, WIDTH)
    assert (told.vision[1] == 0.0).all()
    images = sample(seeing)
    seeing.vision_encoder = None  # the same references, without vision tokens
    assert (sample(seeing)[0] - images[0]).abs().max() > 1e-3
    seeing.vision_encoder = encoder
    assert torch.equal(sample(parts.export(seeing)), images)


@pytest.mark.parametrize("name", TEXTS)
def test_batched_guidance_is_two_separate_passes_on_every_backbone(name, tmp_path):
    pipeline = Parts(name, tmp_path).pipeline("denoiser.adapters=null", shift=2.0)
    asked = pipeline.conditions(PROMPTS, [[torch.full((3, 16, 16), 0.5)], []])
    null = pipeline.conditions(["", ""], [[], []])
    denoiser, given = pipeline.denoiser, Sampling(steps=2, guidance=3.0)

    def separately(latents, timesteps, text, **options):
        halves = [each.chunk(2) for each in (latents, timesteps, text, *options.values())]
        passes = [
            denoiser(*each[:3], **dict(zip(options, each[3:], strict=True)))
            for each in zip(*halves, strict=True)
        ]
        return torch.cat(passes)

    batched = pipeline.sample(asked, null, pipeline.starting_noise(SEEDS), given)
    pipeline.denoiser = separately
    apart = pipeline.sample(asked, null, pipeline.starting_noise(SEEDS), given)
    torch.testing.assert_close(apart, batched, rtol=1e-4, atol=1e-4)
