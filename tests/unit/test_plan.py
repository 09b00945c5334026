"""`plan=true`: what a training step of every denoiser experiment needs, without weights or data."""

import dataclasses
import json
import math

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from data_pipeline.command_line import CONFIG_DIR, compose
from data_pipeline.contract import UserError
from modules.latents.spec import LatentSpec
from modules.networks.flops import StepCost
from modules.reporting.plan import Batch, Plan, plan_denoiser, plan_lines
from train import main

EXPERIMENTS = sorted(
    f"{file.parent.name}/{file.stem}"
    for file in (CONFIG_DIR / "experiment").glob("*/latent_diffusion.yaml")
)
PUBLISHED = {  # parameters in billions, of the backbone alone
    "flux2_klein/latent_diffusion": 3.876,
    "sd35m/latent_diffusion": 2.243,
    "flux1/latent_diffusion": 11.90,
}


def plan(*overrides):
    assert main(compose("train", ["plan=true", *overrides])) is None


def build(experiment, *overrides):
    config = compose("train", [f"experiment={experiment}", *overrides])
    with torch.device("meta"):
        return instantiate(config.denoiser, _convert_="object")()


def few_layers(experiment):
    """Return overrides that leave 1 and 2 layers: the dry run of them all takes seconds."""
    if experiment not in PUBLISHED:
        return []
    config = "denoiser.backbone.config"
    single = [] if "sd35m" in experiment else [f"{config}.num_single_layers=2"]
    return [f"{config}.num_layers=1", *single]


def build_short_klein():
    return build("flux2_klein/latent_diffusion", *few_layers("flux2_klein/latent_diffusion"))


def make_plan(denoiser, batch, **options):
    optimizer = torch.optim.AdamW
    return plan_denoiser(denoiser, None, optimizer, batch, bf16=False, averaged=True, **options)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_denoiser_experiment_is_planned_without_weights_and_data(
    experiment, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    plan(f"experiment={experiment}", "data.batch_size=1", *few_layers(experiment))
    told = capsys.readouterr().out
    tokens = "18 per sample: 18 images of 1 x 1" if "tiny" in experiment else "18,432 per sample"
    assert tokens in told
    assert "TFLOP" in told
    assert [line.split()[0] for line in told.splitlines()[-4:]] == ["0", "1", "2", "3"]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name in PUBLISHED])
def test_a_backbone_has_its_published_size_and_only_what_is_added_is_trained(experiment):
    denoiser = build(experiment)
    added = sum(p.numel() for p in denoiser.parameters() if p.requires_grad)
    backbone = sum(p.numel() for p in denoiser.parameters() if not p.requires_grad)
    assert backbone / 1e9 == pytest.approx(PUBLISHED[experiment], rel=2e-4)
    assert 0.01 * backbone < added < 0.2 * backbone


def test_flops_of_an_adapted_flux2_klein_are_those_of_the_formula():
    denoiser = build_short_klein()
    image, text, width = 18 * 32 * 32, 512, 24 * 128
    plan = make_plan(denoiser, Batch(size=1, grid=32, text_tokens=text))
    tokens = {"image": image, "text": text, "joint": image + text}
    streams = denoiser.backbone.streams()
    base = experts = 0
    for name, layer in denoiser.backbone.transformer.named_modules():
        if isinstance(layer, nn.Linear) and name in streams:
            both = layer.in_features + layer.out_features
            base += 2 * tokens[streams[name]] * layer.in_features * layer.out_features
            experts += 2 * tokens[streams[name]] * 64 * both  # shared
            experts += 2 * image * 64 * both if streams[name] != "text" else 0  # per modality
    ends = 2 * image * 128 * width * 2 + 2 * text * 7680 * width  # x_embedder, proj_out, text
    attention = 3 * 4 * (image + text) ** 2 * width
    forward = base + experts + ends + attention
    # What is left: time embeddings and modulations, which see a handful of vectors.
    assert plan.step.forward == pytest.approx(forward, rel=5e-4)
    assert plan.step.forward >= forward
    assert plan.step.attention == 3 * attention
    # Input gradients through frozen weights and attention, both gradients of the experts. Text of
    # the first block is given, not computed: there a little less.
    assert plan.step.backward == pytest.approx(base + 2 * experts + 2 * attention, rel=0.01)


def test_gradient_checkpointing_changes_the_memory_of_a_plan_and_not_its_flops():
    batch = Batch(size=1, grid=32, text_tokens=512)
    denoiser = build_short_klein()
    checkpointed = make_plan(denoiser, batch)
    assert denoiser.backbone.transformer.gradient_checkpointing  # a plan changes nothing
    denoiser.backbone.transformer.disable_gradient_checkpointing()
    plain = make_plan(denoiser, batch)
    assert plain.step == checkpointed.step
    assert plain.activation_bytes > 1.5 * checkpointed.activation_bytes


BILLION = 10**9
KNOWN = Plan(
    parameters=10 * BILLION, trainable=BILLION, frozen_bytes=18 * BILLION,
    trainable_bytes=4 * BILLION, largest_block_bytes=BILLION, image_tokens=1, text_tokens=1,
    reference_tokens=0, vision_tokens=0,
    step=StepCost(forward=1, backward=2, attention=1, peak_bytes=1), activation_bytes=5 * BILLION,
    optimizer_states=2, averaged=True, bf16=True,
)  # fmt: skip


def test_bytes_are_those_of_the_table_in_the_docs():
    zero = [KNOWN.memory(stage, 8) for stage in range(4)]
    billions = [
        [value / BILLION for value in dataclasses.astuple(held)] + [held.total / BILLION]
        for held in zero
    ]
    #  weights, gradients, optimizer, average, activations, total
    assert billions == [
        [22.0, 4.0, 8.0, 4.0, 5.0, 43.0],  # float32 parameters and AdamW: 16 bytes each
        [20.0, 2.0, 1.5, 4.0, 5.0, 32.5],  # 2 + 2 + 12 bytes, the 12 over 8 GPUs
        [20.0, 0.25, 1.5, 4.0, 5.0, 30.75],
        [20.0 / 8 + 1.0, 0.25, 1.5, 0.5, 5.0, 10.75],  # one block is gathered
    ]
    alone = dataclasses.replace(KNOWN, averaged=False).memory(3, 1)
    assert alone.weights == 20 * BILLION
    assert alone.average == 0


def test_the_optimizer_tells_how_much_it_keeps():
    denoiser = build("tiny/latent_diffusion")
    batch = Batch(size=1, grid=1, text_tokens=4)
    states = {}
    for optimizer in (torch.optim.AdamW, torch.optim.SGD):
        plan = plan_denoiser(
            denoiser, None, lambda p, o=optimizer: o(p, lr=0.1), batch, bf16=True, averaged=False
        )
        states[optimizer] = plan.optimizer_states
    assert states == {torch.optim.AdamW: 2, torch.optim.SGD: 0}
    lines = "\n".join(plan_lines(plan, batch, 4))
    assert "18 images of 1 x 1" in lines
    assert math.isfinite(plan.memory(0, 1).total)


def test_the_size_of_latents_comes_from_their_cache(tmp_path, capsys):
    channels = 2048
    spec = LatentSpec(
        packing=8, mean=[[0.0] * channels] * 3, std=[[1.0] * channels] * 3, origin="a test",
        autoencoder="0", num_views=6, grid=2,
    )  # fmt: skip
    manifest = {"kind": "latents", "latent_spec": spec.to_json()}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    plan("experiment=tiny/latent_diffusion", f"latents={tmp_path}")
    assert "72 per sample: 18 images of 2 x 2; 16 of text" in capsys.readouterr().out


def test_references_and_their_vision_tokens_are_counted(capsys):
    klein = ["experiment=flux2_klein/latent_diffusion", *few_layers("flux2_klein/latent_diffusion")]
    seeing = ["system.image_share=0.9", "system.num_references=2", "denoiser.vision_width=1024"]
    with pytest.raises(UserError, match="give plan_vision_tokens=NUMBER"):
        plan(*klein, *seeing)
    seeing += ["plan_vision_tokens=256"]
    plan(*klein, *seeing)
    told = capsys.readouterr().out
    assert "512 of text, 2,048 of 2 references, 512 of their vision encoder" in told
    plan(*klein, "denoiser.vision_width=1024")
    assert "512 of text\n" in capsys.readouterr().out  # none without references


def test_reference_and_vision_tokens_cost_what_the_formula_says():
    denoiser = build_short_klein()
    seeing = build(
        "flux2_klein/latent_diffusion", *few_layers("flux2_klein/latent_diffusion"),
        "denoiser.vision_width=1024",
    )  # fmt: skip
    plain = make_plan(denoiser, Batch(size=1, grid=32, text_tokens=512))
    longer = make_plan(denoiser, Batch(size=1, grid=32, text_tokens=512 + 2 * 256))
    batch = Batch(size=1, grid=32, text_tokens=512, references=2, vision_tokens=256)
    plan = make_plan(seeing, batch)
    assert (plan.reference_tokens, plan.vision_tokens) == (2048, 512)
    width, layers = 24 * 128, 3
    added = 2 * 1024, 512, 18 * 1024 + 512  # references, vision tokens, all others
    squares = (sum(added)) ** 2 - added[2] ** 2
    assert plan.step.attention - plain.step.attention == 3 * layers * 4 * squares * width
    # What vision tokens cost beside attention is what as many of text do, and their own layer.
    no_references = dataclasses.replace(batch, vision_tokens=0)
    only_vision = plan.step.forward - make_plan(seeing, no_references).step.forward
    text = longer.step.forward - plain.step.forward
    attention = 4 * 512 * width * layers * 2 * 2048  # as they also meet references, both ways
    assert only_vision == text + attention + 2 * 512 * 1024 * 7680


def test_what_cannot_be_planned_is_said():
    with pytest.raises(UserError, match="plan_grid=CELLS"):
        plan("experiment=tiny/latent_diffusion", "plan_grid=null")
    with pytest.raises(UserError, match="latent_diffusion experiments"):
        plan("experiment=tiny/autoencoder", "shards=x")
