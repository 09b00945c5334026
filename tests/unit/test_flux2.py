import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from torch.nn import functional

from data_pipeline.contract import UserError
from modules.networks.adapters import MixtureOfLoRA
from modules.networks.denoiser import JointDenoiser
from modules.networks.flux2 import Flux2Backbone, image_positions, text_positions

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
TIMES = torch.tensor([0.1, 0.6, 1.0])


def make_transformer(**changes) -> Flux2Transformer2DModel:
    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(**CONFIG | changes)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return transformer


def make_denoiser(adapters: MixtureOfLoRA | None = None, **changes) -> JointDenoiser:
    """A denoiser whose every parameter is random, so that nothing is hidden behind a zero."""
    backbone = Flux2Backbone(make_transformer(**changes))
    if adapters is not None:
        backbone.adapt(adapters)
    denoiser = JointDenoiser(backbone, num_views=VIEWS)
    for name, parameter in denoiser.named_parameters():
        if "shared_" in name or "modality_" in name or "view_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return denoiser


def make_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(BATCH, 3, VIEWS, 12, GRID, GRID, generator=generator)
    references = torch.randn(BATCH, 2, 12, 3, 1, generator=generator)
    return latents, references, torch.randn(BATCH, WORDS, 10, generator=generator)


def run_stock(transformer, latents, references, text, times, **options) -> torch.Tensor:
    """The class's own forward, with the pipeline's order: all images, then the references."""
    tokens = [latents.movedim(3, -1).flatten(1, 4), references.movedim(2, -1).flatten(1, 3)]
    slots = [image_positions(torch.tensor([[0, 1]]), GRID, GRID)] * 3
    slots.append(image_positions(torch.tensor([[2, 3]]), 3, 1))
    output = transformer(
        hidden_states=torch.cat(tokens, dim=1),
        encoder_hidden_states=text,
        timestep=times,
        img_ids=torch.cat(slots, dim=1),
        txt_ids=text_positions(WORDS, text.device),
        **options,
    ).sample[:, : tokens[0].shape[1]]
    return output.unflatten(1, (3, VIEWS, GRID, GRID)).movedim(-1, 3)


ADAPTERS = {
    "mixture": MixtureOfLoRA(shared_rank=3, modality_rank=2),
    "plain LoRA": MixtureOfLoRA(shared_rank=3, modality_rank=0),
    "per modality only": MixtureOfLoRA(shared_rank=0, modality_rank=2),
    "none": None,
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_equal_timesteps_and_references_give_the_stock_forward_bit_for_bit(name):
    stock, (latents, references, text) = make_transformer(), make_inputs()
    backbone = Flux2Backbone(copy.deepcopy(stock))
    if ADAPTERS[name] is not None:
        backbone.adapt(ADAPTERS[name])
        assert backbone.adapted
    denoiser = JointDenoiser(backbone, num_views=VIEWS)  # embeddings are zero
    driven = denoiser(latents, TIMES[:, None].expand(-1, 3), text, references=references)
    expected = run_stock(stock, latents, references, text, TIMES)
    assert expected.abs().max() > 0.1
    assert (driven - expected).abs().max() == 0.0


def test_a_guidance_distilled_model_is_told_its_scale():
    stock, (latents, references, text) = make_transformer(guidance_embeds=True), make_inputs()
    denoiser = JointDenoiser(Flux2Backbone(copy.deepcopy(stock), guidance=2.5), num_views=VIEWS)
    driven = denoiser(latents, TIMES[:, None].expand(-1, 3), text, references=references)
    guidance = torch.full((BATCH,), 2.5)
    expected = run_stock(stock, latents, references, text, TIMES, guidance=guidance)
    assert (driven - expected).abs().max() == 0.0


def test_timesteps_per_modality_and_experts_are_those_of_a_slow_reference():
    """Sample by sample, with one explicit weight and one explicit timestep for every token."""
    denoiser = make_denoiser(MixtureOfLoRA(shared_rank=3, modality_rank=2, scale=0.7))
    latents, references, text = make_inputs()
    times = torch.rand(BATCH, 3, generator=torch.Generator().manual_seed(2))
    views = torch.tensor([[0, 1], [1, 0], [1, 1]])
    output = denoiser(latents, times, text, references=references, views=views)
    for row in range(BATCH):
        expected = Reference(denoiser, times[row], views[row], references.shape[3:])(
            latents[row], references[row], text[row]
        )
        torch.testing.assert_close(output[row], expected, rtol=1e-3, atol=1e-4)


class Reference:
    """FLUX.2 for one sample, token by token; a token's kind is 0, 1, 2, "text" or "reference"."""

    def __init__(self, denoiser, times, views, reference_grid):
        self.denoiser, self.model = denoiser, denoiser.backbone.transformer
        positions = [[0.0, 0.0, 0.0, word] for word in range(WORDS)]
        self.kinds: list = ["text"] * WORDS
        for modality in range(3):
            for view in views.tolist():
                cells = [(y, x) for y in range(GRID) for x in range(GRID)]
                positions += [[10.0 * view, y, x, 0.0] for y, x in cells]
                self.kinds += [modality] * len(cells)
        for slot in (VIEWS, VIEWS + 1):
            cells = [(y, x) for y in range(reference_grid[0]) for x in range(reference_grid[1])]
            positions += [[10.0 * slot, y, x, 0.0] for y, x in cells]
            self.kinds += ["reference"] * len(cells)
        # Every axis has one pair of a head's channels, whose frequency is 1.
        self.angles = torch.tensor(positions)
        self.views = views
        self.times = {kind: times.max() for kind in ("text", "reference")}
        self.times |= {modality: times[modality] for modality in range(3)}

    def linear(self, name, tokens, kinds):
        layer = self.model.get_submodule(name)
        rows = []
        for token, kind in zip(tokens, kinds, strict=True):
            weight = layer.weight + layer.scale * layer.shared_up @ layer.shared_down
            if isinstance(kind, int):
                weight = weight + layer.scale * layer.modality_up[kind] @ layer.modality_down[kind]
            rows.append(weight @ token)
        return torch.stack(rows)

    def modulation(self, layer, kinds, num_parts):
        embedder = self.model.time_guidance_embed
        rows = []
        for kind in kinds:
            time = embedder.timestep_embedder(embedder.time_proj(self.times[kind][None] * 1000))
            rows.append(layer.linear(functional.silu(time))[0])
        return torch.stack(rows).chunk(num_parts, dim=-1)

    def attend(self, query, key, value):
        def turn(heads):
            pairs = torch.view_as_complex(heads.unflatten(-1, (-1, 2)).contiguous())
            turned = pairs * torch.polar(torch.ones(()), self.angles)[:, None]
            return torch.view_as_real(turned).flatten(-2)

        scores = torch.einsum("snd,tnd->nst", turn(query), turn(key)) / query.shape[-1] ** 0.5
        return torch.einsum("nst,tnd->snd", scores.softmax(dim=-1), value).flatten(1)

    def normal(self, tokens):
        return functional.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)

    def heads(self, tokens):
        return tokens.unflatten(-1, (-1, CONFIG["attention_head_dim"]))

    def double(self, name, words, image):
        block, num_words = self.model.get_submodule(name), len(words)
        sides = []
        for tokens, kinds, own, modulate in (
            (words, self.kinds[:num_words], ("add_q_proj", "add_k_proj", "add_v_proj"), "txt"),
            (image, self.kinds[num_words:], ("to_q", "to_k", "to_v"), "img"),
        ):
            layer = getattr(self.model, f"double_stream_modulation_{modulate}")
            parts = self.modulation(layer, kinds, 6)
            shifted = self.normal(tokens) * (1 + parts[1]) + parts[0]
            qkv = [self.heads(self.linear(f"{name}.attn.{each}", shifted, kinds)) for each in own]
            sides.append((tokens, kinds, parts, qkv))
        norms = (
            (block.attn.norm_added_q, block.attn.norm_added_k),
            (
                block.attn.norm_q,
                block.attn.norm_k,
            ),
        )
        queries, keys = (
            torch.cat([norm[i](side[3][i]) for norm, side in zip(norms, sides, strict=True)])
            for i in (0, 1)
        )
        mixed = self.attend(queries, keys, torch.cat([side[3][2] for side in sides]))
        results = []
        for (tokens, kinds, parts, _), part, out, feed in zip(
            sides,
            (mixed[:num_words], mixed[num_words:]),
            ("attn.to_add_out", "attn.to_out.0"),
            ("ff_context", "ff"),
            strict=True,
        ):
            tokens = tokens + parts[2] * self.linear(f"{name}.{out}", part, kinds)
            shifted = self.normal(tokens) * (1 + parts[4]) + parts[3]
            gate, kept = self.linear(f"{name}.{feed}.linear_in", shifted, kinds).chunk(2, -1)
            fed = self.linear(f"{name}.{feed}.linear_out", functional.silu(gate) * kept, kinds)
            results.append(tokens + parts[5] * fed)
        return results

    def single(self, name, tokens):
        block, width = self.model.get_submodule(name), tokens.shape[1]
        shift, scale, gate = self.modulation(self.model.single_stream_modulation, self.kinds, 3)
        shifted = self.normal(tokens) * (1 + scale) + shift
        fused = self.linear(f"{name}.attn.to_qkv_mlp_proj", shifted, self.kinds)
        query, key, value = (self.heads(fused[:, i * width : (i + 1) * width]) for i in range(3))
        mixed = self.attend(block.attn.norm_q(query), block.attn.norm_k(key), value)
        first, second = fused[:, 3 * width :].chunk(2, dim=-1)
        both = torch.cat([mixed, functional.silu(first) * second], dim=-1)
        return tokens + gate * self.linear(f"{name}.attn.to_out", both, self.kinds)

    def __call__(self, latents, references, text):
        model, denoiser = self.model, self.denoiser
        image = model.x_embedder(latents.movedim(2, -1))  # m v h w d
        own = denoiser.modality_embedding[:, None] + denoiser.view_embedding[self.views]
        image = image + image.shape[-1] ** 0.5 * own[:, :, None, None]
        clean = model.x_embedder(references.movedim(1, -1))
        image = torch.cat([image.flatten(0, 3), clean.flatten(0, 2)])
        words = model.context_embedder(text)
        for i in range(CONFIG["num_layers"]):
            words, image = self.double(f"transformer_blocks.{i}", words, image)
        tokens = torch.cat([words, image])
        for i in range(CONFIG["num_single_layers"]):
            tokens = self.single(f"single_transformer_blocks.{i}", tokens)
        scale, shift = self.modulation(model.norm_out, self.kinds, 2)
        output = model.proj_out(self.normal(tokens) * (1 + scale) + shift)
        predicted = [row for row, kind in zip(output, self.kinds, strict=True) if kind in (0, 1, 2)]
        return torch.stack(predicted).unflatten(0, (3, VIEWS, GRID, GRID)).movedim(-1, 2)


def test_each_row_has_its_own_positions():
    denoiser, (latents, _, text) = make_denoiser(), make_inputs()
    torch.nn.init.zeros_(denoiser.view_embedding)  # so that nothing but positions can differ
    times = torch.rand(BATCH, 3)
    plain = denoiser(latents, times, text)
    views = torch.tensor([[0, 1], [1, 0], [0, 1]])
    moved = denoiser(latents, times, text, views=views)
    torch.testing.assert_close(moved[::2], plain[::2], rtol=1e-5, atol=1e-5)
    assert (moved[1] - plain[1]).abs().max() > 1e-3


def test_permuting_views_with_their_cameras_permutes_the_output():
    denoiser, (latents, references, text) = make_denoiser(), make_inputs()
    times, views = torch.rand(BATCH, 3), torch.tensor([[0, 1]]).expand(BATCH, -1)
    plain = denoiser(latents, times, text, references=references, views=views)
    swapped = denoiser(latents.flip(2), times, text, references=references, views=views.flip(1))
    torch.testing.assert_close(swapped.flip(2), plain, rtol=1e-3, atol=1e-4)
    only_latents = denoiser(latents.flip(2), times, text, references=references, views=views)
    assert (only_latents.flip(2) - plain).abs().max() > 1e-3


@pytest.mark.parametrize("change", ["content", "order", "none"])
def test_references_are_looked_at_in_their_order(change):
    denoiser, (latents, references, text) = make_denoiser(), make_inputs()
    times = torch.rand(BATCH, 3)
    plain = denoiser(latents, times, text, references=references)
    other = {"content": references + 0.5, "order": references.flip(1), "none": None}[change]
    moved = denoiser(latents, times, text, references=other)
    assert moved.shape == plain.shape == latents.shape
    assert (moved - plain).abs().amax(dim=(1, 2, 3, 4, 5)).min() > 1e-3


def test_bfloat16_stays_within_a_twentieth_of_the_float32_prediction():
    spec = MixtureOfLoRA(shared_rank=3, modality_rank=2)
    exact, (latents, references, text) = make_denoiser(spec), make_inputs()
    torch.manual_seed(0)
    for name, parameter in exact.backbone.transformer.named_parameters():
        if name.endswith("weight") and parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    rough = copy.deepcopy(exact)
    for name, parameter in rough.backbone.transformer.named_parameters():
        if "shared_" not in name and "modality_" not in name:
            parameter.data = parameter.data.bfloat16()
    times = torch.rand(BATCH, 3)
    expected = exact(latents, times, text, references=references)
    output = rough(latents, times, text, references=references)
    assert output.dtype == torch.float32
    assert (output - expected).norm() / expected.norm() < 0.05


def test_a_block_that_is_computed_again_has_the_route_of_its_own_pass():
    """Two passes of unlike layouts, and only then the backward pass of the first."""
    denoiser = make_denoiser(MixtureOfLoRA(shared_rank=3, modality_rank=2))
    latents, references, text = make_inputs()
    times = torch.rand(BATCH, 3)
    experts = [p for p in denoiser.parameters() if p.requires_grad]

    def gradients() -> list[torch.Tensor]:
        output = denoiser(latents, times, text, references=references)
        denoiser(latents[:, :, :, :, :1], times, text[:, :2])
        return list(torch.autograd.grad(output.square().sum(), experts))

    plain = gradients()
    denoiser.backbone.transformer.enable_gradient_checkpointing()
    torch.testing.assert_close(gradients(), plain)


@pytest.mark.slow
def test_the_denoiser_compiles_into_one_graph():
    """With checkpointing; in a process of its own, as run-time type checks cannot be compiled."""
    script = """
import torch
from test_flux2 import ADAPTERS, BATCH, make_denoiser, make_inputs
denoiser = make_denoiser(ADAPTERS["mixture"])
latents, references, text = make_inputs()
times = torch.rand(BATCH, 3)
denoiser.backbone.transformer.enable_gradient_checkpointing()
experts = [p for p in denoiser.parameters() if p.requires_grad]
def gradients(network):
    output = network(latents, times, text, references=references)
    return torch.autograd.grad(output.square().sum(), experts)
compiled = torch.compile(denoiser, backend="aot_eager", fullgraph=True)
torch.testing.assert_close(gradients(compiled), gradients(denoiser), rtol=1e-4, atol=1e-4)
"""
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    environment = os.environ | {"PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


def test_every_adaptable_layer_sees_the_tokens_that_it_is_said_to_see():
    denoiser, (latents, references, text) = make_denoiser(), make_inputs()
    backbone, seen = denoiser.backbone, {}
    for name in backbone.streams():
        layer = backbone.transformer.get_submodule(name)
        layer.register_forward_pre_hook(
            lambda _, given, name=name: seen.update({name: given[0].shape[1]})
        )
    denoiser(latents, torch.rand(BATCH, 3), text, references=references)
    image = 3 * VIEWS * GRID * GRID + 6
    lengths = {"image": image, "text": WORDS, "joint": WORDS + image}
    assert seen == {name: lengths[stream] for name, stream in backbone.streams().items()}
    assert len(seen) == 2 * 12 + 2 * 2


def test_a_tiled_canvas_is_the_stock_forward_on_one_large_image():
    stock, (latents, _, text) = make_transformer(), make_inputs()
    tiled = JointDenoiser(Flux2Backbone(copy.deepcopy(stock)), num_views=VIEWS, layout="tiled")
    output = tiled(latents, TIMES[:, None].expand(-1, 3), text)
    canvas = torch.cat([torch.cat(list(row.unbind(1)), dim=-1) for row in latents.unbind(1)], -2)
    expected = stock(
        hidden_states=canvas.movedim(1, -1).flatten(1, 2),
        encoder_hidden_states=text,
        timestep=TIMES,
        img_ids=image_positions(torch.tensor([[0]]), 3 * GRID, VIEWS * GRID),
        txt_ids=text_positions(WORDS, text.device),
    ).sample.unflatten(1, (3, GRID, VIEWS, GRID))  # b m h v w c
    assert (output - expected.permute(0, 1, 3, 5, 2, 4)).abs().max() == 0.0


def test_a_tiled_canvas_refuses_what_it_cannot_do():
    backbone, (latents, _, text) = Flux2Backbone(make_transformer()), make_inputs()
    with pytest.raises(UserError, match="a tiled canvas has one noise level"):
        JointDenoiser(backbone, VIEWS, "tiled")(latents, torch.rand(BATCH, 3), text)
    with pytest.raises(UserError, match="a tiled canvas has no modalities"):
        JointDenoiser(backbone.adapt(ADAPTERS["mixture"]), VIEWS, "tiled")


def test_same_pixel_tokens_of_modalities_share_positions_and_views_do_not():
    positions = image_positions(torch.arange(6)[None], 2, 2)[0].unflatten(0, (6, 4))
    assert positions[:, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]
    assert len(positions.flatten(0, 1).unique(dim=0)) == 24
    words = text_positions(3, positions.device)
    assert words.tolist() == [[[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 2]]]


def test_the_sampler_is_shifted_as_the_pipeline_shifts_it():
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    published = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type="exponential"
    )
    sigmas = torch.linspace(1.0, 1 / 50, 50).tolist()
    for num_tokens in (256, 1024, 4096, 8192):
        published.set_timesteps(sigmas=sigmas, mu=compute_empirical_mu(num_tokens, 50))
        shift = Flux2Backbone(make_transformer()).sampling_shift(num_tokens, 50)
        ours = FlowMatchEulerDiscreteScheduler(shift=shift)
        ours.set_timesteps(sigmas=sigmas)
        torch.testing.assert_close(ours.sigmas, published.sigmas, rtol=1e-5, atol=1e-6)
