import pytest
import torch
from diffusers import Flux2Transformer2DModel

from data_pipeline.contract import UserError
from modules.networks.denoiser import JointDenoiser
from modules.networks.flux2 import Flux2Backbone

CONFIG = {
    "in_channels": 12,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 10,
    "timestep_guidance_channels": 16,
    "axes_dims_rope": (2, 2, 2, 2),
    "rope_theta": 2000,
    "guidance_embeds": False,
}
BATCH, VIEWS, GRID, WORDS = 3, 2, 2, 5


def make_denoiser() -> JointDenoiser:
    """A denoiser whose every parameter is random, so that nothing is hidden behind a zero."""
    torch.manual_seed(0)
    denoiser = JointDenoiser(Flux2Backbone(Flux2Transformer2DModel(**CONFIG)), num_views=VIEWS)
    for embedding in (denoiser.modality_embedding, denoiser.view_embedding):
        torch.nn.init.normal_(embedding, std=0.1)
    return denoiser


def make_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(BATCH, 3, VIEWS, 12, GRID, GRID, generator=generator)
    timesteps = torch.rand(BATCH, 3, generator=generator)
    return latents, timesteps, torch.randn(BATCH, WORDS, 10, generator=generator)


def test_gradient_checkpointing_changes_nothing():
    denoiser, inputs = make_denoiser(), make_inputs()
    plain = torch.autograd.grad(denoiser(*inputs).square().sum(), denoiser.view_embedding)[0]
    denoiser.backbone.transformer.enable_gradient_checkpointing()
    spared = torch.autograd.grad(denoiser(*inputs).square().sum(), denoiser.view_embedding)[0]
    torch.testing.assert_close(plain, spared)


def test_permuting_and_duplicating_the_batch_permutes_and_duplicates_the_output():
    denoiser, (latents, timesteps, text) = make_denoiser(), make_inputs()
    order = torch.tensor([2, 0, 1, 2])
    output = denoiser(latents, timesteps, text)
    moved = denoiser(latents[order], timesteps[order], text[order])
    torch.testing.assert_close(moved, output[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("what", ["text", "timestep", "other modality", "other view"])
def test_each_input_changes_the_prediction_of_rgb_in_the_first_view(what):
    denoiser, (latents, timesteps, text) = make_denoiser(), make_inputs()
    before = denoiser(latents, timesteps, text)[:, 0, 0]
    if what == "text":
        text = text + 1.0
    elif what == "timestep":
        timesteps = timesteps * torch.tensor([1.0, 1.0, 0.0])  # of coord alone: through attention
    elif what == "other modality":
        latents = latents.clone()
        latents[:, 1, 0] += 1.0
    else:
        latents = latents.clone()
        latents[:, 0, 1] += 1.0
    change = denoiser(latents, timesteps, text)[:, 0, 0] - before
    assert change.abs().amax(dim=(1, 2, 3)).min() > 1e-5  # of every sample; float32 noise is 1e-7


def test_every_parameter_is_trained_within_a_few_steps_from_scratch():
    torch.manual_seed(0)
    denoiser = JointDenoiser.from_scratch(num_views=VIEWS, **CONFIG)
    latents, timesteps, text = make_inputs()
    text.requires_grad_()
    assert denoiser(latents, timesteps, text).abs().max() == 0.0
    target = torch.randn_like(latents)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        text.grad = None
        (denoiser(latents, timesteps, text) - target).square().mean().backward()
        optimizer.step()
    for name, parameter in denoiser.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert text.grad is not None
    assert text.grad.abs().amax(dim=(1, 2)).min() > 0


def test_modality_and_view_tell_equal_tokens_apart_after_a_few_steps():
    torch.manual_seed(0)
    denoiser = JointDenoiser.from_scratch(num_views=VIEWS, **CONFIG)
    latents, timesteps, text = make_inputs()
    target = torch.randn_like(latents)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (denoiser(latents, timesteps, text) - target).square().mean().backward()
        optimizer.step()
    equal = latents[:, :1, :1].expand_as(latents)
    output = denoiser(equal, timesteps[:, :1].expand(-1, 3), text).detach()
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (output[:, first] - output[:, second]).abs().max() > 1e-3
    assert (output[:, :, 0] - output[:, :, 1]).abs().max() > 1e-3


def test_embeddings_reach_the_tokens_multiplied_by_the_root_of_the_width():
    denoiser, inputs = make_denoiser(), make_inputs()
    seen = []
    block = denoiser.backbone.transformer.transformer_blocks[0]
    block.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    denoiser(*inputs)
    with torch.no_grad():
        denoiser.view_embedding[1] += 1.0
        denoiser.modality_embedding[2] += 0.5
    denoiser(*inputs)
    moved = (seen[1] - seen[0]).unflatten(1, (3, VIEWS, GRID * GRID))
    root = denoiser.backbone.transformer.inner_dim**0.5
    expected = root * torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.5, 1.5]])
    torch.testing.assert_close(
        moved, expected[None, :, :, None, None].expand_as(moved), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("rule", "expected"), [("largest", [0.8, 0.6]), ("mean", [0.5, 0.2]), ("rgb", [0.2, 0.0])]
)
def test_the_rule_decides_at_which_noise_level_text_is_modulated(rule, expected):
    backbone, (latents, _, text) = make_denoiser().backbone, make_inputs()
    denoiser = JointDenoiser(backbone, VIEWS, text_timestep=rule)
    seen = []
    backbone.transformer.double_stream_modulation_txt.register_forward_pre_hook(
        lambda _, given: seen.append(given[0])
    )
    denoiser(latents[:2], torch.tensor([[0.2, 0.5, 0.8], [0.0, 0.6, 0.0]]), text[:2])
    torch.testing.assert_close(seen, [backbone._embed_time(torch.tensor(expected))])


def test_an_unknown_rule_of_the_text_timestep_is_refused():
    with pytest.raises(UserError, match=r"denoiser\.text_timestep=median.*largest, mean, rgb"):
        JointDenoiser.from_scratch(num_views=VIEWS, text_timestep="median", **CONFIG)


def test_the_denoiser_builds_on_the_meta_device():
    with torch.device("meta"):
        denoiser = JointDenoiser.from_scratch(num_views=6, **CONFIG)
    assert {p.device.type for p in denoiser.parameters()} == {"meta"}
