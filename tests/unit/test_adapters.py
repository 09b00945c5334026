import copy

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from safetensors.torch import load_file
from test_flux2 import (
    BATCH,
    GRID,
    TIMES,
    VIEWS,
    make_denoiser,
    make_inputs,
    make_transformer,
    run_stock,
)
from torch import nn

from data_pipeline.contract import UserError
from modules.networks.adapter_files import load_experts, save_experts, save_shared_lora
from modules.networks.adapters import AdaptedLinear, MixtureOfLoRA, Route, Router
from modules.networks.denoiser import JointDenoiser
from modules.networks.flux2 import Flux2Backbone

SPEC = MixtureOfLoRA(shared_rank=3, modality_rank=2, scale=0.5)
TEXT, TOKENS, REFERENCES = 4, 5, 2


def make_layer(stream: str, spec: MixtureOfLoRA = SPEC, *, in_rows: bool = False) -> AdaptedLinear:
    """A layer whose experts are random, on a route of three modalities."""
    torch.manual_seed(0)
    router = Router()
    router.route = Route(num_modalities=3, num_tokens=TOKENS, num_text=TEXT, in_rows=in_rows)
    layer = AdaptedLinear(nn.Linear(6, 7), spec, stream, router)  # pyright: ignore[reportArgumentType]
    for name, parameter in layer.named_parameters():
        if name not in ("weight", "bias"):
            nn.init.normal_(parameter)
    return layer


def expected_output(layer: AdaptedLinear, tokens: torch.Tensor, modality: int | None):
    """The output with the experts merged into the weight."""
    weight = layer.weight + layer.scale * layer.shared_up @ layer.shared_down
    if modality is not None:
        weight = weight + layer.scale * layer.modality_up[modality] @ layer.modality_down[modality]
    return nn.functional.linear(tokens, weight, layer.bias)


@pytest.mark.parametrize("stream", ["image", "joint", "text"])
def test_every_token_passes_the_shared_expert_and_its_modalitys_own(stream):
    layer = make_layer(stream)
    lead = TEXT if stream != "image" else 0
    kinds = [None] * lead
    if stream != "text":
        kinds += [m for m in range(3) for _ in range(TOKENS)] + [None] * REFERENCES
    tokens = torch.randn(2, len(kinds), 6)
    output = layer(tokens)
    for i, kind in enumerate(kinds):
        torch.testing.assert_close(output[:, i], expected_output(layer, tokens[:, i], kind))


def test_modalities_may_have_rows_of_their_own():
    layer = make_layer("image", in_rows=True)
    tokens = torch.randn(2 * 3, TOKENS + REFERENCES, 6)
    output = layer(tokens)
    for row in range(6):
        own = expected_output(layer, tokens[row, :TOKENS], row % 3)
        torch.testing.assert_close(output[row, :TOKENS], own)
        others = expected_output(layer, tokens[row, TOKENS:], None)
        torch.testing.assert_close(output[row, TOKENS:], others)


@pytest.mark.parametrize("modality", [0, 1, 2])
def test_experts_of_one_modality_get_no_gradient_from_another(modality):
    layer = make_layer("joint")
    output = layer(torch.randn(2, TEXT + 3 * TOKENS + REFERENCES, 6))
    first = TEXT + modality * TOKENS
    output[:, first : first + TOKENS].square().sum().backward()
    for stacked in (layer.modality_down.grad, layer.modality_up.grad):
        for each in range(3):
            assert (stacked[each].abs().max() > 0) == (each == modality)
    assert layer.shared_up.grad.abs().max() > 0


def test_text_and_references_give_no_gradient_to_modalities():
    layer = make_layer("joint")
    output = layer(torch.randn(2, TEXT + 3 * TOKENS + REFERENCES, 6))
    (output[:, :TEXT].square().sum() + output[:, -REFERENCES:].square().sum()).backward()
    assert layer.modality_down.grad is None or layer.modality_down.grad.abs().max() == 0
    assert layer.shared_up.grad.abs().max() > 0


def test_in_the_network_a_modalitys_loss_reaches_its_own_experts_only():
    """With attention switched off: through attention every modality rightly reaches the others."""
    spec = MixtureOfLoRA(shared_rank=3, modality_rank=2, targets=("*.ff.*", "*.to_qkv_mlp_proj"))
    denoiser, (latents, references, text) = make_denoiser(spec), make_inputs()
    transformer = denoiser.backbone.transformer
    for block in transformer.transformer_blocks:
        nn.init.zeros_(block.attn.to_out[0].weight)
    for block in transformer.single_transformer_blocks:  # keep the MLP half of the projection
        block.attn.to_out.weight.data[:, : denoiser.backbone.width] = 0.0
    output = denoiser(latents, torch.rand(BATCH, 3), text, references=references)
    output[:, 1].square().sum().backward()
    layers = denoiser.backbone.adapted
    assert len(layers) == 2 * 2 + 2
    for name, layer in layers.items():
        reached = layer.modality_up.grad.abs().amax(dim=(1, 2)) > 0
        assert reached.tolist() == [False, True, False], name


def test_training_moves_experts_and_embeddings_and_nothing_else():
    denoiser, (latents, references, text) = make_denoiser(SPEC), make_inputs()
    before = copy.deepcopy(denoiser.state_dict())
    optimizer = torch.optim.AdamW([p for p in denoiser.parameters() if p.requires_grad], lr=1e-2)
    denoiser(latents, torch.rand(BATCH, 3), text, references=references).square().mean().backward()
    optimizer.step()
    moved = {name for name, value in denoiser.state_dict().items() if (value != before[name]).any()}
    own = ("shared_down", "shared_up", "modality_down", "modality_up")
    expected = {name for name in before if name.endswith((*own, "_embedding"))}
    assert moved == expected
    text_layers = [layer for layer in denoiser.backbone.adapted.values() if layer.stream == "text"]
    assert text_layers
    assert not any(hasattr(layer, "modality_up") for layer in text_layers)


def test_float32_experts_serve_a_bfloat16_layer():
    layer = make_layer("joint")
    layer.weight.data, layer.bias.data = layer.weight.bfloat16(), layer.bias.bfloat16()
    tokens = torch.randn(2, TEXT + 3 * TOKENS, 6)
    output = layer(tokens.bfloat16())
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    assert layer.modality_up.grad.dtype == layer.shared_up.grad.dtype == torch.float32
    exact = make_layer("joint")(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = make_layer("joint")(tokens)
    assert mixed.dtype == torch.bfloat16
    assert (mixed - exact).norm() / exact.norm() < 0.02
    assert (output - exact).norm() / exact.norm() < 0.02
    assert make_layer("joint", MixtureOfLoRA(dtype="bfloat16")).shared_up.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared_rank": 0, "modality_rank": 0}, "adapters of rank 0 train nothing"),
        ({"shared_rank": -1}, "must not be negative"),
        ({"dtype": "float16"}, "must be float32 or bfloat16"),
    ],
)
def test_impossible_adapters_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        MixtureOfLoRA(**options)


def test_a_target_that_matches_nothing_is_named():
    with pytest.raises(UserError, match=r"'\*\.to_z' matches no linear layer; names look like tr"):
        Flux2Backbone(make_transformer()).adapt(MixtureOfLoRA(targets=("*.to_q", "*.to_z")))


@pytest.mark.parametrize("spec", [SPEC, MixtureOfLoRA(shared_rank=0, modality_rank=2)])
def test_experts_come_back_from_their_file(spec, tmp_path):
    denoiser, (latents, references, text) = make_denoiser(spec), make_inputs()
    save_experts(denoiser.backbone, tmp_path / "experts.safetensors")
    fresh = JointDenoiser(Flux2Backbone(make_transformer()), num_views=VIEWS)
    load_experts(fresh.backbone, tmp_path / "experts.safetensors")
    for name in ("modality_embedding", "view_embedding"):
        getattr(fresh, name).data.copy_(getattr(denoiser, name))
    times = torch.rand(BATCH, 3)
    assert fresh.backbone.adapters == spec
    assert torch.equal(
        fresh(latents, times, text, references=references),
        denoiser(latents, times, text, references=references),
    )


def test_experts_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "experts.safetensors"
    save_experts(make_denoiser(SPEC).backbone, path)
    others = {
        "scale": make_denoiser(MixtureOfLoRA(shared_rank=3, modality_rank=2)).backbone,
        "modality_down": make_denoiser(MixtureOfLoRA(shared_rank=3, modality_rank=4, scale=0.5)),
        "single_transformer_blocks.1": Flux2Backbone(make_transformer(num_single_layers=1)),
    }
    for difference, network in others.items():
        backbone = network.backbone if isinstance(network, JointDenoiser) else network
        with pytest.raises(UserError, match=f"differ in .*{difference}"):
            load_experts(backbone, path)


def test_a_file_that_holds_no_experts_is_named(tmp_path):
    backbone, path = make_denoiser(SPEC).backbone, tmp_path / "experts.safetensors"
    save_shared_lora(backbone, path)  # safetensors, but of another kind
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(path.read_bytes()[:100])
    for each in (path, damaged, tmp_path / "missing.safetensors"):
        with pytest.raises(UserError, match=f"{each.name} holds no experts"):
            load_experts(backbone, each)


def test_diffusers_loads_the_shared_expert_as_a_lora(tmp_path):
    """Its own `load_lora_adapter`, on the stock class: same outputs as our adapted backbone."""
    pytest.importorskip("peft")
    spec = MixtureOfLoRA(shared_rank=3, modality_rank=0, scale=0.5)
    denoiser, (latents, references, text) = make_denoiser(spec), make_inputs()
    for name in ("modality_embedding", "view_embedding"):
        nn.init.zeros_(getattr(denoiser, name))
    save_shared_lora(denoiser.backbone, tmp_path / "pytorch_lora_weights.safetensors")
    stock: Flux2Transformer2DModel = make_transformer()
    bare = run_stock(stock, latents, references, text, TIMES)
    stock.load_lora_adapter(tmp_path, use_safetensors=True)
    loaded = run_stock(stock, latents, references, text, TIMES)
    ours = denoiser(latents, TIMES[:, None].expand(-1, 3), text, references=references)
    assert (loaded - bare).abs().max() > 0.1
    torch.testing.assert_close(loaded, ours, rtol=1e-4, atol=1e-4)
    assert len(load_file(tmp_path / "pytorch_lora_weights.safetensors")) == 2 * (2 * 12 + 2 * 2)
    assert ours.shape[-1] == GRID
