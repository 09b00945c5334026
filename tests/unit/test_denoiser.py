import pytest
import torch
from diffusers import Flux2Transformer2DModel

from modules.networks.denoiser import JointDenoiser, image_ids, text_ids
from modules.networks.flux2 import run_flux2

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
    denoiser = JointDenoiser(Flux2Transformer2DModel(**CONFIG), num_views=VIEWS)
    for embedding in (denoiser.modality_embedding, denoiser.view_embedding):
        torch.nn.init.normal_(embedding, std=0.1)
    return denoiser


def make_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(BATCH, 3, VIEWS, 12, GRID, GRID, generator=generator)
    timesteps = torch.rand(BATCH, 3, generator=generator)
    return latents, timesteps, torch.randn(BATCH, WORDS, 10, generator=generator)


def test_equal_timesteps_give_the_stock_forward():
    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(**CONFIG)
    denoiser = JointDenoiser(transformer, num_views=VIEWS)  # embeddings are zero
    latents, _, text = make_inputs()
    times = torch.tensor([0.1, 0.6, 1.0])
    driven = denoiser(latents, times[:, None].expand(-1, 3), text)
    stock = transformer(
        hidden_states=latents.movedim(3, -1).flatten(1, 4),
        encoder_hidden_states=text,
        timestep=times,
        img_ids=image_ids(3, VIEWS, GRID, GRID, latents.device),
        txt_ids=text_ids(WORDS, latents.device),
    ).sample
    driven = driven.movedim(3, -1).flatten(1, 4)
    assert stock.abs().max() > 0.1
    # Not bit-equal by right: one linear layer sees 9 rows of time embeddings and the other 3.
    torch.testing.assert_close(driven, stock, rtol=0.0, atol=1e-6)


def test_gradient_checkpointing_changes_nothing():
    denoiser, inputs = make_denoiser(), make_inputs()
    plain = torch.autograd.grad(denoiser(*inputs).square().sum(), denoiser.view_embedding)[0]
    denoiser.transformer.enable_gradient_checkpointing()
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


def test_a_modality_is_modulated_by_its_own_timestep_and_text_by_the_largest():
    """Against a slow reference: single groups, with the blocks' attention switched off."""
    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(**CONFIG)
    for block in transformer.transformer_blocks:
        torch.nn.init.zeros_(block.attn.to_out[0].weight)
    for block in transformer.single_transformer_blocks:  # keep the MLP half of the fused projection
        block.attn.to_out.weight.data[:, : transformer.inner_dim] = 0.0
    tokens, text = torch.randn(1, 6, transformer.inner_dim), torch.randn(1, WORDS, 10)
    ids, words = torch.rand(6, 4), text_ids(WORDS, tokens.device)
    times = torch.tensor([[0.2, 0.9, 0.0]])
    together = run_flux2(transformer, tokens, text, times, ids, words)
    for group in range(3):
        part = slice(2 * group, 2 * group + 2)
        alone = run_flux2(
            transformer, tokens[:, part], text, times[:, group : group + 1], ids[part], words
        )
        torch.testing.assert_close(together[:, part], alone, rtol=1e-5, atol=1e-6)


def test_same_pixel_tokens_of_modalities_share_positions_and_views_do_not():
    ids = image_ids(3, 6, 2, 2, torch.device("cpu")).unflatten(0, (3, 6, 4))
    assert (ids[0] == ids[1]).all()
    assert ids[0, :, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]
    assert len(ids[0].flatten(0, 1).unique(dim=0)) == 24
    assert text_ids(3, ids.device).tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 2]]


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
    block = denoiser.transformer.transformer_blocks[0]
    block.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    denoiser(*inputs)
    with torch.no_grad():
        denoiser.view_embedding[1] += 1.0
        denoiser.modality_embedding[2] += 0.5
    denoiser(*inputs)
    moved = (seen[1] - seen[0]).unflatten(1, (3, VIEWS, GRID * GRID))
    root = denoiser.transformer.inner_dim**0.5
    expected = root * torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.5, 1.5]])
    torch.testing.assert_close(
        moved, expected[None, :, :, None, None].expand_as(moved), rtol=1e-4, atol=1e-4
    )


def test_the_denoiser_builds_on_the_meta_device():
    with torch.device("meta"):
        denoiser = JointDenoiser.from_scratch(num_views=6, **CONFIG)
    assert {p.device.type for p in denoiser.parameters()} == {"meta"}
