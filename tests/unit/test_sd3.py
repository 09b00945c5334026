"""SD3 with modalities in rows: the stock forward where there is one, and one joint attention."""

import copy
import functools

import pytest
import torch
from diffusers import Flux2Transformer2DModel, SD3Transformer2DModel
from torch import nn

from data_pipeline.contract import UserError
from modules.latents.codec import pack, unpack
from modules.networks.adapters import MixtureOfLoRA, Route
from modules.networks.denoiser import JointDenoiser
from modules.networks.sd3 import RowsBlock, Sd3Backbone

CONFIG = {  # the switches of SD3.5-medium: dual attention in the first layers, norms of q and k
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 3,
    "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 10,
    "caption_projection_dim": 16, "pooled_projection_dim": 6, "pos_embed_max_size": 12,
    "dual_attention_layers": (0, 1), "qk_norm": "rms_norm",
}  # fmt: skip
BATCH, VIEWS, GRID, WORDS = 2, 2, 2, 5
TIMES = torch.tensor([0.3, 0.9])


def make_transformer(**changes):
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(**CONFIG | changes)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return transformer


def make_inputs(modalities=3, views=VIEWS, grid=GRID):
    generator = torch.Generator().manual_seed(1)
    draw = functools.partial(torch.randn, generator=generator)
    latents = draw(BATCH, modalities, views, 16, grid, grid)
    return latents, draw(BATCH, WORDS, 10), draw(BATCH, 6)


def run(backbone, latents, times, text, pooled, references=None):
    count = 0 if references is None else references.shape[1]
    return backbone.run(
        latents,
        times,
        text,
        text_timesteps=times.amax(dim=1),
        pooled=pooled,
        embedding=None,
        slots=torch.arange(latents.shape[2])[None],
        references=references,
        reference_slots=torch.arange(count),
    )


@pytest.mark.parametrize(
    "changes", [{}, {"qk_norm": None, "dual_attention_layers": ()}, {"num_layers": 1}]
)
def test_one_view_of_one_modality_is_the_stock_forward(changes):
    stock, (latents, text, pooled) = make_transformer(**changes), make_inputs(1, 1, grid=3)
    backbone = Sd3Backbone(copy.deepcopy(stock))
    backbone.adapt(MixtureOfLoRA(shared_rank=3, modality_rank=2))  # changes nothing at the start
    driven = run(backbone, latents, TIMES[:, None], text, pooled)
    expected = stock(
        hidden_states=unpack(latents[:, 0, 0], 2),
        encoder_hidden_states=text,
        pooled_projections=pooled,
        timestep=TIMES * 1000,
    ).sample
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(driven[:, 0, 0], pack(expected, 2), atol=2e-6, rtol=1e-5)


def test_with_equal_timesteps_the_joint_attention_is_that_of_one_long_sequence():
    """Without `attn2`, a stock block on the concatenated rows is the explicit reference."""
    stock = make_transformer(dual_attention_layers=())
    latents, text, pooled = make_inputs()
    backbone = Sd3Backbone(copy.deepcopy(stock))
    driven = run(backbone, latents, TIMES[:, None].expand(-1, 3), text, pooled)
    tokens = stock.pos_embed(unpack(latents, 2).flatten(0, 2))
    tokens = tokens.unflatten(0, (BATCH, -1)).flatten(1, 2)
    time = stock.time_text_embed(TIMES * 1000, pooled)
    words = stock.context_embedder(text)
    for block in stock.transformer_blocks:
        words, tokens = block(tokens, words, time)
    cells = stock.proj_out(stock.norm_out(tokens, time)).unflatten(-1, (2, 2, 4))
    expected = cells.movedim(-1, -3).flatten(-3).unflatten(1, (3, VIEWS, GRID, GRID))
    torch.testing.assert_close(driven, expected.movedim(-1, 3), atol=1e-5, rtol=1e-4)


def naive_block(block, rows, words, row_times, text_time):
    """One sample's block in loops over rows and heads, straight from the definition."""

    def heads(tokens, norm=None):
        split = tokens.unflatten(-1, (block.attn.heads, -1))
        return split if norm is None else norm(split)

    def attend(query, key, value):
        out = torch.zeros_like(query)
        for head in range(query.shape[1]):
            scores = query[:, head] @ key[:, head].T / query.shape[-1] ** 0.5
            out[:, head] = scores.softmax(dim=-1) @ value[:, head]
        return out.flatten(1)

    attn, own = block.attn, block.attn2
    entered = [
        block.norm1(row[None], emb=time[None]) for row, time in zip(rows, row_times, strict=True)
    ]
    context = block.norm1_context(words[None], emb=text_time[None])
    keys = [heads(attn.to_k(each[0][0]), attn.norm_k) for each in entered]
    values = [heads(attn.to_v(each[0][0])) for each in entered]
    key = torch.cat([*keys, heads(attn.add_k_proj(context[0][0]), attn.norm_added_k)])
    value = torch.cat([*values, heads(attn.add_v_proj(context[0][0]))])
    results = []
    for row, (normed, gate, shift, scale, gate_mlp, second, second_gate) in zip(
        rows, entered, strict=True
    ):
        query = heads(attn.to_q(normed[0]), attn.norm_q)
        row = row + gate * attn.to_out[0](attend(query, key, value))
        query, other = (
            heads(own.to_q(second[0]), own.norm_q),
            heads(own.to_k(second[0]), own.norm_k),
        )
        row = row + second_gate * own.to_out[0](attend(query, other, heads(own.to_v(second[0]))))
        results.append(row + gate_mlp * block.ff(block.norm2(row) * (1 + scale) + shift))
    normed, gate, shift, scale, gate_mlp = context
    query = heads(attn.add_q_proj(normed[0]), attn.norm_added_q)
    words = words + gate * attn.to_add_out(attend(query, key, value))
    words = words + gate_mlp * block.ff_context(block.norm2_context(words) * (1 + scale) + shift)
    return results, words


def test_rows_share_keys_and_values_and_keep_their_own_timestep_and_second_attention():
    backbone = Sd3Backbone(make_transformer())
    block = backbone.transformer.transformer_blocks[0]
    assert isinstance(block, RowsBlock)
    assert block.use_dual_attention
    torch.manual_seed(2)
    image, extra = torch.randn(BATCH * 3, 6, 16), torch.randn(BATCH, 4, 16)
    words, time, text_time = (
        torch.randn(BATCH, 5, 16),
        torch.randn(BATCH * 3, 16),
        torch.randn(2, 16),
    )
    route = Route(num_modalities=3, num_tokens=6, num_text=5, in_rows=True)
    driven = backbone.call(route, block, image, extra, words, time, text_time)
    for b in range(BATCH):
        rows = [*image[3 * b : 3 * b + 3], extra[b]]
        times = [*time[3 * b : 3 * b + 3], text_time[b]]
        expected, expected_words = naive_block(block, rows, words[b], times, text_time[b])
        for row, own in zip([*driven[0][3 * b : 3 * b + 3], driven[1][b]], expected, strict=True):
            torch.testing.assert_close(row, own, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(driven[2][b], expected_words, atol=1e-5, rtol=1e-4)


def test_permuted_samples_and_modalities_give_permuted_results():
    backbone = Sd3Backbone(make_transformer()).adapt(MixtureOfLoRA(shared_rank=2, modality_rank=0))
    latents, text, pooled = make_inputs()
    times = torch.tensor([[0.2, 0.0, 0.9], [1.0, 0.5, 0.1]])
    result = run(backbone, latents, times, text, pooled)
    swapped = run(backbone, latents.flip(0, 1), times.flip(0, 1), text.flip(0), pooled.flip(0))
    torch.testing.assert_close(swapped.flip(0, 1), result, atol=1e-5, rtol=1e-4)


def make_denoiser(folder, **options):
    build = functools.partial(Sd3Backbone.from_pretrained, str(folder), dtype="float32", **options)
    spec = MixtureOfLoRA(shared_rank=3, modality_rank=2)
    return JointDenoiser.from_pretrained(num_views=VIEWS, backbone=build, adapters=spec)


def test_everything_changes_the_output_and_learns(tmp_path):
    make_transformer().save_pretrained(tmp_path)
    denoiser = make_denoiser(tmp_path, gradient_checkpointing=True)
    latents, text, pooled = make_inputs()
    references = torch.randn(BATCH, 2, 16, 3, 1, generator=torch.Generator().manual_seed(3))
    times = torch.tensor([[0.2, 0.4, 0.9], [1.0, 0.5, 0.1]])
    given = {"text": text, "pooled": pooled, "references": references}
    optimizer = torch.optim.SGD([p for p in denoiser.parameters() if p.requires_grad], lr=0.1)
    frozen = {n: p.clone() for n, p in denoiser.named_parameters() if not p.requires_grad}
    for _ in range(2):  # the first step moves the matrices that are zero, the second all
        optimizer.zero_grad()
        denoiser(latents, times, **given).square().mean().backward()
        optimizer.step()
    for name, parameter in denoiser.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, frozen[name]), name
        elif "transformer_blocks.2" not in name or ".add_q_proj" not in name:
            # (the last block's queries of text lead nowhere)
            assert parameter.grad.abs().max() > 0, name
    with torch.no_grad():
        before = denoiser(latents, times, **given)
        for name in given:
            changed = denoiser(latents, times, **given | {name: given[name] + 1.0})
            assert (changed - before).abs().amax(dim=(1, 2, 3, 4, 5)).min() > 1e-3, name
        changed = denoiser(latents, times.roll(1, dims=1), **given)
        assert (changed - before).abs().max() > 1e-3


def test_wrong_input_is_refused_with_advice(tmp_path):
    config = {"in_channels": 16, "num_layers": 1, "num_single_layers": 1,
              "attention_head_dim": 8, "num_attention_heads": 1, "joint_attention_dim": 8,
              "axes_dims_rope": (2, 2, 2, 2)}  # fmt: skip
    Flux2Transformer2DModel(**config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"Flux2Transformer2DModel.*SD3Transformer2DModel"):
        make_denoiser(tmp_path)
    backbone = Sd3Backbone(make_transformer())
    latents, text, _ = make_inputs()
    with pytest.raises(UserError, match="pooled text embedding"):
        run(backbone, latents, TIMES[:, None].expand(-1, 3), text, None)
    with pytest.raises(UserError, match="smaller images"):
        run(backbone, *make_inputs(1, 1, grid=13)[:1], TIMES[:, None], text, torch.zeros(BATCH, 6))


def test_adapters_leave_the_modulation_alone():
    backbone = Sd3Backbone(make_transformer()).adapt(MixtureOfLoRA(shared_rank=1, modality_rank=1))
    layers = {
        n
        for n, m in backbone.transformer.transformer_blocks.named_modules()
        if isinstance(m, nn.Linear)
    }
    left = layers - {name.removeprefix("transformer_blocks.") for name in backbone.adapted}
    assert left == {name for name in layers if "norm" in name}
    assert any("attn2" in name for name in backbone.adapted)
