"""The dry run counts what PyTorch counts on a real step, what the formula of the docs says, and the
bytes that a real allocator would hand out."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import Flux2Transformer2DModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from modules.networks.flops import dry_run

CHANNELS, TEXT_WIDTH, WIDTH, HEADS = 8, 24, 64, 2
IMAGE, TEXT = 40, 6  # tokens
CONFIG = {
    "in_channels": CHANNELS, "num_layers": 2, "num_single_layers": 3, "attention_head_dim": 32,
    "num_attention_heads": HEADS, "joint_attention_dim": TEXT_WIDTH, "axes_dims_rope": [8] * 4,
    "timestep_guidance_channels": 16, "guidance_embeds": False,
}  # fmt: skip


def build(device):
    torch.manual_seed(0)
    with torch.device(device):
        return Flux2Transformer2DModel(**CONFIG)


def loss(network):
    device = network.device
    with torch.device(device):
        return network(
            hidden_states=torch.ones(1, IMAGE, CHANNELS),
            encoder_hidden_states=torch.ones(1, TEXT, TEXT_WIDTH),
            timestep=torch.ones(1),
            img_ids=torch.zeros(IMAGE, 4),
            txt_ids=torch.zeros(TEXT, 4),
        ).sample.sum()


def only_attention_is_trained(network):
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(".to_q." in name or ".to_out." in name)


@pytest.mark.parametrize("prepare", [lambda network: None, only_attention_is_trained])
def test_the_dry_run_counts_what_a_real_step_on_the_cpu_counts(prepare):
    real, planned = build("cpu"), build("meta")
    prepare(real)
    prepare(planned)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = loss(real)
        forward = counter.get_total_flops()
        result.backward()
    cost = dry_run(lambda: loss(planned), [planned])
    assert cost.forward == forward
    assert cost.total == counter.get_total_flops()
    assert all(parameter.grad is None for parameter in planned.parameters())


def test_the_forward_pass_costs_what_the_formula_of_the_docs_says():
    network = build("meta")
    cost = dry_run(lambda: loss(network), [network])
    tokens = {"text": TEXT, "image": IMAGE, "both": TEXT + IMAGE, "once": 1}

    def stream(name):
        if name.startswith("single_transformer_blocks"):
            return "both"
        if ".add_" in name or "to_add_out" in name or "context" in name:
            return "text"
        return "image" if ".attn." in name or ".ff." in name or "_embedder" in name else "once"

    linear = sum(
        2 * tokens["image" if name == "proj_out" else stream(name)] * layer.weight.numel()
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and "time" not in name
    ) + sum(2 * p.numel() for n, p in network.time_guidance_embed.named_parameters())
    layers = CONFIG["num_layers"] + CONFIG["num_single_layers"]
    attention = layers * 4 * (TEXT + IMAGE) ** 2 * WIDTH
    assert cost.forward == linear + attention
    assert cost.attention == 3 * attention
    # Backward: gradients of weights and of inputs, but for inputs that are given, not computed:
    # latents, text and the sinusoids of time.
    given = sum(
        2 * tokens[which] * layer.weight.numel()
        for which, layer in (
            ("image", network.x_embedder),
            ("text", network.context_embedder),
            ("once", network.time_guidance_embed.timestep_embedder.linear_1),
        )
    )
    assert cost.backward == 2 * cost.forward - given


def test_frozen_weights_cost_no_weight_gradients():
    network = build("meta")
    whole = dry_run(lambda: loss(network), [network])
    network.requires_grad_(False)
    network.x_embedder.requires_grad_(True)
    adapted = dry_run(lambda: loss(network), [network])
    assert adapted.forward == whole.forward
    assert adapted.backward < 0.75 * whole.backward
    network.requires_grad_(False)
    assert dry_run(lambda: loss(network), [network]).backward == 0


def test_peak_memory_is_that_of_the_tensors_alive_at_the_worst_moment():
    layer = nn.Linear(256, 256, bias=False, device="meta")
    kib = 256 * 256 * 4  # of every tensor here

    def plain():
        x = torch.empty(256, 256, device="meta")
        for _ in range(4):
            x = layer(x).sigmoid()
        return x.sum()

    # Forward keeps x and 4 outputs of sigmoid; the loss is a scalar. The backward holds, over the
    # 5, a gradient and the next one; the last layer's weight gradient comes when some are free.
    cost = dry_run(plain, [layer])
    assert 7 * kib <= cost.peak_bytes <= 8 * kib + 4096


def test_checkpointing_costs_flops_and_saves_memory():
    layers = nn.ModuleList(nn.Linear(256, 256, bias=False, device="meta") for _ in range(8))

    def block(layer, x):
        return torch.tanh(layer(torch.sigmoid(torch.tanh(x)))) + x

    def step(checkpointed):
        x = torch.empty(256, 256, device="meta")
        for layer in layers:
            x = (
                checkpoint(block, layer, x, use_reentrant=False)
                if checkpointed
                else block(layer, x)
            )
        return x.sum()

    plain, checkpointed = (dry_run(lambda on=on: step(on), [layers]) for on in (False, True))
    assert checkpointed.backward - plain.backward == plain.forward
    assert checkpointed.peak_bytes < 0.6 * plain.peak_bytes


def test_attention_holds_no_matrix_of_scores():
    def step():
        query = torch.empty(1, 2, 4096, 8, device="meta", requires_grad=True)
        return F.scaled_dot_product_attention(query, query, query).sum()

    cost = dry_run(step, [])
    assert cost.attention == 3 * 4 * 4096**2 * 16
    assert cost.peak_bytes < 4096**2
    assert F.scaled_dot_product_attention.__module__ != "modules.networks.flops"  # put back


def test_products_that_are_added_in_place_are_counted():
    total, a, b = (torch.empty(2, 8, 8, device="meta") for _ in range(3))
    assert dry_run(lambda: total.baddbmm_(a, b), []).total == 2 * 2 * 8**3
    assert dry_run(lambda: total[0].addmm_(a[0], b[0]), []).total == 2 * 8**3
