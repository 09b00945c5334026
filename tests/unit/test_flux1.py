"""FLUX.1, driven block by block: the stock forward with equal timesteps, and a slow reference."""

import copy

import pytest
import torch
from diffusers import FluxTransformer2DModel

from data_pipeline.contract import UserError
from modules.networks.adapters import MixtureOfLoRA
from modules.networks.denoiser import JointDenoiser
from modules.networks.flux1 import Flux1Backbone, GroupsBlock, image_positions
from modules.networks.flux2 import rotary_embedding

CONFIG = {  # the switches of FLUX.1 [dev]: guidance embedding, pooled text, three axes
    "in_channels": 12, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 8,
    "num_attention_heads": 2, "joint_attention_dim": 10, "pooled_projection_dim": 6,
    "guidance_embeds": True, "axes_dims_rope": (2, 2, 4),
}  # fmt: skip
BATCH, VIEWS, GRID, WORDS, GUIDANCE = 3, 2, 2, 5, 2.5
TIMES = torch.tensor([0.1, 0.6, 1.0])


def make_transformer(**changes):
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(**CONFIG | changes)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return transformer


def make_inputs():
    draw = {"generator": torch.Generator().manual_seed(1)}
    return (
        torch.randn(BATCH, 3, VIEWS, 12, GRID, GRID, **draw),
        {
            "text": torch.randn(BATCH, WORDS, 10, **draw),
            "pooled": torch.randn(BATCH, 6, **draw),
            "references": torch.randn(BATCH, 2, 12, 3, 1, **draw),
        },
    )


def run_stock(transformer, latents, times, *, text, pooled, references):
    """The class's own forward, all images and references in one sequence."""
    tokens = [latents.movedim(3, -1).flatten(1, 4), references.movedim(2, -1).flatten(1, 3)]
    ids = [image_positions(torch.tensor([[0, 1]]), GRID, GRID)[0]] * 3
    ids.append(image_positions(torch.tensor([[2, 3]]), 3, 1)[0])
    guided = transformer.config["guidance_embeds"]
    output = transformer(
        hidden_states=torch.cat(tokens, dim=1),
        encoder_hidden_states=text,
        pooled_projections=pooled,
        timestep=times,
        img_ids=torch.cat(ids),
        txt_ids=torch.zeros(WORDS, 3),
        guidance=torch.full((BATCH,), GUIDANCE) if guided else None,
    ).sample[:, : tokens[0].shape[1]]
    return output.unflatten(1, (3, VIEWS, GRID, GRID)).movedim(-1, 3)


@pytest.mark.parametrize("adapters", [None, MixtureOfLoRA(shared_rank=3, modality_rank=2)])
@pytest.mark.parametrize("guided", [True, False])
def test_equal_timesteps_give_the_stock_forward(adapters, guided):
    stock, (latents, given) = make_transformer(guidance_embeds=guided), make_inputs()
    backbone = Flux1Backbone(copy.deepcopy(stock), guidance=GUIDANCE)
    if adapters is not None:
        backbone.adapt(adapters)
    denoiser = JointDenoiser(backbone, num_views=VIEWS)
    driven = denoiser(latents, TIMES[:, None].expand(-1, 3), **given)
    expected = run_stock(stock, latents, TIMES, **given)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(driven, expected, atol=2e-6, rtol=1e-5)


def test_each_modality_is_modulated_by_its_own_timestep():
    """A block against the stock one, run once for each timestep in attention's common context."""
    backbone = Flux1Backbone(make_transformer())
    block = backbone.transformer.transformer_blocks[0]
    assert isinstance(block, GroupsBlock)
    torch.manual_seed(2)
    lengths = [4, 4, 3]
    image, words = torch.randn(2, 11, 16), torch.randn(2, 5, 16)
    time, text_time = torch.randn(3, 2, 16), torch.randn(2, 16)
    ids = torch.cat([torch.zeros(1, 5, 3), torch.arange(33.0).view(1, 11, 3)], dim=1)
    rotary = rotary_embedding(backbone.transformer.pos_embed, [ids])
    driven_words, driven = block(image, words, time, text_time, lengths, rotary)

    def heads(norm, tokens):
        split = tokens.unflatten(-1, (2, 8))
        return split if norm is None else norm(split)

    def rotated(tokens):  # pairs of channels as complex numbers
        angle = torch.complex(rotary[0][..., ::2], rotary[1][..., ::2])[0, :, None]
        pairs = torch.view_as_complex(tokens.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * angle).flatten(-2)

    per_token = torch.stack([time[i] for i, n in enumerate(lengths) for _ in range(n)], dim=1)
    attn = block.attn
    for b in range(2):  # token by token, each under the embedding of its own timestep
        rows, vectors = image[b], []
        for token, t in zip(rows, per_token[b], strict=True):
            vectors.append(block.norm1.linear(torch.nn.functional.silu(t)).chunk(6))
            assert token.shape == t.shape
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (
            torch.stack(each) for each in zip(*vectors, strict=True)
        )
        normed = block.norm1.norm(rows) * (1 + scale) + shift
        context = block.norm1_context(words[b : b + 1], emb=text_time[b : b + 1])
        parts = []
        for of_text, of_image, text_norm, norm in (
            (attn.add_q_proj, attn.to_q, attn.norm_added_q, attn.norm_q),
            (attn.add_k_proj, attn.to_k, attn.norm_added_k, attn.norm_k),
            (attn.add_v_proj, attn.to_v, None, None),
        ):
            text_part = heads(text_norm, of_text(context[0][0]))
            parts.append(torch.cat([text_part, heads(norm, of_image(normed))]))
        query, key, value = rotated(parts[0]), rotated(parts[1]), parts[2]
        scores = torch.einsum("qnd,knd->nqk", query, key) / 8**0.5
        mixed = torch.einsum("nqk,knd->qnd", scores.softmax(dim=-1), value).flatten(1)
        rows = rows + gate * attn.to_out[0](mixed[5:])
        rows = rows + gate_mlp * block.ff(block.norm2(rows) * (1 + scale_mlp) + shift_mlp)
        torch.testing.assert_close(driven[b], rows, atol=1e-5, rtol=1e-4)
        _, gate, shift, scale, gate_mlp = (each[0] for each in context)
        own = words[b] + gate * attn.to_add_out(mixed[:5])
        own = own + gate_mlp * block.ff_context(block.norm2_context(own) * (1 + scale) + shift)
        torch.testing.assert_close(driven_words[b], own, atol=1e-5, rtol=1e-4)


def test_every_input_changes_the_output_of_its_own_sample_alone():
    backbone, (latents, given) = Flux1Backbone(make_transformer()), make_inputs()
    denoiser = JointDenoiser(backbone, num_views=VIEWS)
    times = torch.tensor([[0.2, 0.4, 0.9], [1.0, 0.5, 0.1], [0.3, 0.0, 0.0]])
    views = torch.tensor([[0, 1], [1, 0], [0, 1]])
    before = denoiser(latents, times, **given, views=views)
    cases = {name: (latents, times, given | {name: given[name].clone()}, views) for name in given}
    for name, case in cases.items():
        case[2][name][1] += 1.0
    cases["latents"] = (latents.clone(), times, given, views)
    cases["latents"][0][1] += 1.0
    cases["times"] = (latents, times.clone(), given, views)
    cases["times"][1][1, 2] = 0.8
    cases["views"] = (latents, times, given, torch.tensor([[0, 1], [0, 1], [0, 1]]))
    for name, (changed, at, more, slots) in cases.items():
        gap = (denoiser(changed, at, **more, views=slots) - before).abs().flatten(1).amax(dim=1)
        assert gap[1] > 1e-3, name
        assert gap[[0, 2]].max() < 1e-5, name


def test_gradient_checkpointing_changes_nothing_but_memory():
    (latents, given), gradients = make_inputs(), []
    times = torch.tensor([[0.2, 0.4, 0.9]] * BATCH)
    for checkpointed in (False, True):
        backbone = Flux1Backbone(make_transformer())
        torch.manual_seed(3)
        backbone.adapt(MixtureOfLoRA(shared_rank=2, modality_rank=2))
        backbone.transformer.gradient_checkpointing = checkpointed
        denoiser = JointDenoiser(backbone, num_views=VIEWS)
        denoiser(latents, times, **given).square().mean().backward()
        gradients.append([p.grad for p in denoiser.parameters() if p.grad is not None])
    assert len(gradients[0]) > 50
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_pooled_text_is_asked_for():
    denoiser = JointDenoiser(Flux1Backbone(make_transformer()), num_views=VIEWS)
    latents, given = make_inputs()
    with pytest.raises(UserError, match="pooled text embedding"):
        denoiser(latents, torch.ones(BATCH, 3), **given | {"pooled": None})
