"""Losses by noise level, gradients by expert, and checkpoints of what is trained."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import lightning
import pytest
import torch
from diffusers import Flux2Transformer2DModel
from lightning.pytorch.loggers.logger import DummyLogger
from test_condition_probes import CHANNELS, VIEWS, Fitted, make_batch, make_system

import train
from data_pipeline.command_line import compose
from data_pipeline.contract import UserError
from modules.callbacks.checkpoint import RunCheckpoint, find_checkpoint, where_it_goes_on
from modules.callbacks.ema import WeightAverage
from modules.callbacks.expert_gradients import ExpertGradients, expert_norms
from modules.callbacks.timestep_bins import TimestepBins, bin_sums
from modules.latents.spec import LatentSpec
from modules.losses.flow import TimestepMix, mean_over_noisy
from modules.networks.adapters import MixtureOfLoRA
from modules.networks.denoiser import JointDenoiser
from modules.networks.flux2 import Flux2Backbone
from modules.networks.text_encoder import Vocabulary
from modules.systems import latent_diffusion
from modules.systems.diffusion_checks import is_same_vision


def make_adapted(seed=0) -> JointDenoiser:
    torch.manual_seed(0)  # the pretrained weights are the same, whatever the adapters begin with
    transformer = Flux2Transformer2DModel(
        in_channels=CHANNELS, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=8, timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2), guidance_embeds=False,
    )  # fmt: skip
    torch.manual_seed(seed)
    adapters = MixtureOfLoRA(shared_rank=2, modality_rank=2)
    return JointDenoiser(Flux2Backbone(transformer).adapt(adapters), VIEWS)


def make_adapted_system(seed=0, **options):
    system = make_system(**options)
    system.denoiser = make_adapted(seed)
    system.__class__ = Fitted
    system.spec = LatentSpec(
        packing=1, mean=[[0.0] * CHANNELS] * 3, std=[[1.0] * CHANNELS] * 3, origin="test",
        autoencoder="test", num_views=VIEWS, grid=2,
    )  # fmt: skip
    system.vocabulary = Vocabulary.from_captions(["a red chair", "a blue mug"])
    return system


def make_trainer(folder, steps, *callbacks):
    return lightning.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, callbacks=list(callbacks),
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=folder, log_every_n_steps=1,
    )  # fmt: skip


def make_loader():
    return torch.utils.data.DataLoader([make_batch()] * 8, batch_size=None)


def test_errors_are_summed_by_modality_and_noise_level():
    errors = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    timesteps = torch.tensor([[0.1, 0.0, 0.6], [0.2, 0.5, 1.0]])
    sums, counts = bin_sums(errors, timesteps, 2)
    assert sums.tolist() == [[9.0, 0.0], [0.0, 16.0], [0.0, 36.0]]
    assert counts.tolist() == [[2.0, 0.0], [0.0, 1.0], [0.0, 2.0]]


def test_training_logs_losses_by_level_and_gradients_by_expert(tmp_path):
    system = make_adapted_system()
    trainer = make_trainer(tmp_path, 3, TimestepBins(2), ExpertGradients())
    trainer.fit(system, make_loader())
    logged = trainer.logged_metrics
    by_level = {name for name in logged if name.startswith("train/loss_at/rgb/")}
    assert by_level == {"train/loss_at/rgb/0.00-0.50", "train/loss_at/rgb/0.50-1.00"}
    for expert in ("shared", "rgb", "normal", "coord", "other"):
        assert logged[f"train/grad_norm/{expert}"] > 0.0


class Rows(DummyLogger):
    """Keeps what a logger is sent."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step):
        self.rows.append(metrics)


def test_a_row_holds_what_belongs_to_it_and_nothing_older(tmp_path):
    norms, sums = [], []

    class Seen(lightning.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            norms.append(expert_norms(module)["shared"].item())

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            sums.append(bin_sums(outputs["errors"], outputs["timesteps"], 8))

    rows = Rows()
    trainer = make_trainer(tmp_path, 6, TimestepBins(8), ExpertGradients(), Seen())
    trainer.log_every_n_steps, trainer.loggers = 3, [rows]
    trainer.fit(make_adapted_system(), make_loader())
    written = [row for row in rows.rows if "train/grad_norm/shared" in row]
    assert [row["train/grad_norm/shared"] for row in written] == pytest.approx(norms[2::3])
    drawn = [sum(sums[:3]), sum(sums[3:])]
    assert any((errors[0] > 0.0).sum() < 8 for errors, _ in drawn)  # some level was not drawn
    for row, (errors, counts) in zip(written, drawn, strict=True):
        levels = [value for name, value in row.items() if name.startswith("train/loss_at/rgb/")]
        assert levels == pytest.approx((errors[0] / counts[0]).tolist(), nan_ok=True)


def test_gradients_are_counted_with_the_expert_they_belong_to():
    denoiser = make_adapted()
    for name, parameter in denoiser.named_parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
            if name.endswith("modality_up"):
                parameter.grad[1] = 1.0
    norms = expert_norms(denoiser)
    layers = denoiser.backbone.adapted.values()
    numbers = sum(layer.modality_up[1].numel() for layer in layers if layer.has_modalities)
    assert norms["normal"].item() == pytest.approx(numbers**0.5, rel=1e-4)
    assert [norms[name].item() for name in ("shared", "rgb", "coord", "other")] == [0.0] * 4


def test_a_checkpoint_holds_what_is_trained_and_a_resume_ends_as_a_whole_run(tmp_path):
    def fit(system, steps, start=None):
        average = WeightAverage(0.9)
        trainer = make_trainer(tmp_path, steps, average)
        trainer.fit(system, make_loader(), ckpt_path=start, weights_only=True)
        return trainer, average

    whole, half, resumed = (make_adapted_system(seed) for seed in (0, 0, 1))
    _, whole_average = fit(whole, 4)
    trainer, _ = fit(half, 2)
    path = tmp_path / "half.ckpt"
    trainer.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    trained = {name for name, p in half.named_parameters() if p.requires_grad}
    assert content["state_dict"].keys() == trained
    frozen = sum(p.numel() for p in half.denoiser.parameters() if not p.requires_grad)
    assert frozen > 1000
    _, average = fit(resumed, 4, str(path))
    for name, parameter in whole.named_parameters():
        assert torch.equal(dict(resumed.named_parameters())[name], parameter), name
    for name, tensor in whole_average.average.items():
        assert torch.equal(average.average[name], tensor), name


@pytest.mark.parametrize("on_first", [True, False])
def test_all_processes_write_the_last_checkpoint_or_none_does(on_first, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    if not on_first:  # a file that this process sees, and the first one does not
        (tmp_path / "checkpoints" / "step-00000005.ckpt").touch()
    trainer = Mock(spec=lightning.Trainer, interrupted=False, global_step=5)
    trainer.strategy.broadcast = lambda answer: on_first
    RunCheckpoint(tmp_path, 10).on_fit_end(trainer, make_system())
    assert trainer.save_checkpoint.called == (not on_first)


def test_an_interrupted_run_tells_from_where_it_goes_on(tmp_path):
    assert "starts anew" in where_it_goes_on(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    for step in (200, 1400):
        (tmp_path / f"checkpoints/step-{step:08d}.ckpt").touch()
    assert where_it_goes_on(tmp_path).endswith("from step 1400")


def test_a_checkpoint_folder_of_deepspeed_is_not_called_broken(tmp_path):
    folder = tmp_path / "checkpoints" / "step-00000005.ckpt"
    folder.mkdir(parents=True)
    for ckpt in ("auto", str(folder)):
        with pytest.raises(UserError, match="as DeepSpeed writes checkpoints") as refusal:
            find_checkpoint(ckpt, tmp_path, "denoiser")
        assert "delete" not in str(refusal.value)


@pytest.mark.parametrize("name", ["flux2_klein", "sd35m", "flux1"])
def test_full_size_experiments_refuse_deepspeed_at_the_start(name):
    experiment = [f"experiment={name}/latent_diffusion"]
    with pytest.raises(UserError, match="use trainer=ddp"):
        train.main(compose("train", [*experiment, "trainer=deepspeed"]))
    for allowed in (
        [*experiment, "trainer=ddp"],
        [*experiment, "trainer=deepspeed", "trainer.precision=bf16-mixed"],
        ["experiment=tiny/latent_diffusion", "trainer=deepspeed"],
    ):
        train.refuse_mixed_deepspeed(compose("train", allowed))


def test_a_checkpoint_of_other_adapters_is_refused(tmp_path):
    trainer = make_trainer(tmp_path, 1)
    trainer.fit(make_adapted_system(), make_loader())
    trainer.save_checkpoint(tmp_path / "adapted.ckpt")
    other = make_adapted_system()
    other.denoiser = JointDenoiser(other.denoiser.backbone, VIEWS)
    del other.denoiser.backbone.transformer.transformer_blocks[0].attn.to_q.shared_up
    with pytest.raises(UserError, match=r"attn.to_q.shared_up is on one side only"):
        make_trainer(tmp_path, 2).fit(
            other, make_loader(), ckpt_path=str(tmp_path / "adapted.ckpt"), weights_only=True
        )


def test_a_checkpoint_on_another_pretrained_backbone_is_refused(tmp_path):
    def adapted_on(fingerprint):
        system = make_adapted_system()
        origin = {"source": "a model", "fingerprint": fingerprint}
        system.denoiser.backbone.origin = origin
        return system

    trainer, path = make_trainer(tmp_path, 1), str(tmp_path / "a.ckpt")
    trainer.fit(adapted_on("aa"), make_loader())
    trainer.save_checkpoint(path)
    assert torch.load(path, weights_only=True)["backbone"]["fingerprint"] == "aa"
    make_trainer(tmp_path, 2).fit(adapted_on("aa"), make_loader(), ckpt_path=path)
    with pytest.raises(UserError, match=r"a model holds other weights \(fingerprint bb\)"):
        make_trainer(tmp_path, 2).fit(adapted_on("bb"), make_loader(), ckpt_path=path)


def test_a_checkpoint_goes_on_with_what_it_was_trained_with_alone(tmp_path):
    def make(text="aa", text_timestep="largest", vision=None, **options):
        system = make_adapted_system(**options)
        system.text_encoder.config |= {"source": "a text model", "fingerprint": text}
        system.denoiser.text_timestep = text_timestep
        system.vision = vision
        return system

    def resume(path, **options):
        system = make(**options)
        system.on_load_checkpoint(torch.load(path, weights_only=True))

    trainer, path = make_trainer(tmp_path, 1), str(tmp_path / "a.ckpt")
    trainer.fit(make(), make_loader())
    trainer.save_checkpoint(path)
    resume(path)
    resume(path, text=None)
    with pytest.raises(UserError, match=r"a text model holds other weights \(fingerprint bb\)"):
        resume(path, text="bb")
    for options, told in (
        ({"text_timestep": "mean"}, r"denoiser\.text_timestep=largest, this run has mean"),
        ({"prediction": "velocity"}, r"system\.prediction=clean, this run has velocity"),
        ({"num_references": 2}, r"system\.num_references=1, this run has 2"),
    ):
        with pytest.raises(UserError, match=told):
            resume(path, **options)
    older = torch.load(path, weights_only=True)
    del older["settings"], older["text_encoder"]
    torch.save(older, path)
    resume(path, text="bb", prediction="velocity")


@pytest.mark.parametrize(("share", "textures"), [("joint", False), ("independent", True)])
def test_an_export_says_whether_training_textured(share, textures, tmp_path):
    shares = dict.fromkeys(("joint", "texture", "geometry", "independent"), 0.0)
    system = make_adapted_system(mix=TimestepMix(**shares | {share: 1.0}))
    system.denoiser.vision = None
    system.export(tmp_path)
    told = json.loads((tmp_path / "denoiser.json").read_text())
    assert told["sampling"]["textures"] is textures


def test_vision_tokens_are_the_same_wherever_their_encoder_was_found():
    def about(source, fingerprint, width=4):
        encoder = {"source": source, "revision": None, "fingerprint": fingerprint, "kind": "x"}
        return {"encoder": encoder, "width": width, "num_tokens": 9}

    saved = about("/here/dino", "aa")
    assert is_same_vision(saved, about("facebook/dinov2-large", "aa"))
    assert is_same_vision(None, saved)
    assert is_same_vision(saved, about("/here/dino", None))
    others = about("/here/dino", "bb"), about("/here/dino", "aa", 5), about("/there", None), None
    assert not any(is_same_vision(saved, other) for other in others)


def test_foreground_weighting_is_asked_for_and_needs_a_cache_that_tells(tmp_path):
    system = make_adapted_system(foreground_weight=4.0)
    with pytest.raises(UserError, match="says nothing of what is foreground"):
        make_trainer(tmp_path, 1).fit(system, make_loader())
    covered = make_batch() | {"coverage": torch.rand(2, VIEWS, 2, 2)}
    losses = {}
    for weight in (1.0, 4.0):
        system = make_adapted_system(foreground_weight=weight)
        trainer = make_trainer(tmp_path, 1)
        trainer.fit(system, torch.utils.data.DataLoader([covered], batch_size=None))
        losses[weight] = trainer.callback_metrics["train/loss/total"].item()
    assert losses[1.0] != losses[4.0]


# Modalities of the second and the fourth sample are held clean.
LEVELS = torch.tensor([[0.3, 0.5, 0.9], [0.6, 0.0, 0.0], [0.2, 0.2, 0.2], [0.7, 0.0, 0.0]])


def step_once(tmp_path, monkeypatch, size, loaded):
    """Make one SGD step of batches of `size` out of four samples; return its gradients."""
    system = make_adapted_system(text_dropout=0.0, image_share=0.0)
    system.build_optimizer = lambda parameters: torch.optim.SGD(parameters, lr=1.0)
    levels = iter(LEVELS.split(size))
    monkeypatch.setattr(TimestepMix, "sample", lambda *_, **__: next(levels))
    noise = torch.randn(loaded["latents"].shape, generator=torch.Generator().manual_seed(5))
    parts = iter(noise.split(size))
    monkeypatch.setattr(latent_diffusion.torch, "randn", lambda *_, **__: next(parts))
    before = {n: p.detach().clone() for n, p in system.named_parameters() if p.requires_grad}
    batches = [
        {"latents": latents, "caption": loaded["caption"][i * size : (i + 1) * size]}
        for i, latents in enumerate(loaded["latents"].split(size))
    ]
    trainer = make_trainer(tmp_path, 1)
    trainer.accumulate_grad_batches = len(batches)
    trainer.fit(system, torch.utils.data.DataLoader(batches, batch_size=None))
    monkeypatch.undo()
    assert trainer.global_step == 1
    return {n: before[n] - p for n, p in system.named_parameters() if p.requires_grad}


def test_accumulated_micro_batches_make_the_step_of_the_whole_batch(tmp_path, monkeypatch):
    """Where each has as many noisy samples of a modality as the others; here half of two."""
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(4, 3, VIEWS, CHANNELS, 2, 2, generator=generator)
    loaded = {"latents": latents, "caption": ["a red chair", "a blue mug", "a", "chair"]}
    whole = step_once(tmp_path, monkeypatch, 4, loaded)
    accumulated = step_once(tmp_path, monkeypatch, 2, loaded)
    assert max(change.abs().max() for change in whole.values()) > 1e-3
    for name, change in whole.items():
        torch.testing.assert_close(accumulated[name], change, rtol=1e-4, atol=1e-6)


def test_modalities_that_are_held_clean_add_nothing_to_the_loss(tmp_path, monkeypatch):
    system = make_adapted_system(image_share=0.0, text_dropout=0.0)
    batch = make_batch()
    for value in (0.0, 100.0):  # whatever is predicted for them
        monkeypatch.setattr(
            system, "predict", lambda noisy, *_, v=value: noisy.new_full(noisy.shape, v)
        )
        times = torch.tensor([[0.5, 0.0, 0.0]] * 2)
        told = system.conditions(batch, batch["caption"], None)
        errors, _ = system._errors(batch, told, times, torch.zeros_like(batch["latents"]))
        losses = mean_over_noisy(errors, times)
        assert losses[0] > 0.0
        assert losses[1:].tolist() == [0.0, 0.0]


COMPILED = """
import sys
import torch
from test_training_figures import Fitted, make_adapted, make_loader, make_system, make_trainer

losses, names, graphs = [], [], []
counting = {"backend": lambda module, inputs: graphs.append(0) or module.forward}
for options in (None, counting):
    system = make_system(image_share=0.0, denoiser=make_adapted, compile_blocks=options)
    system.__class__ = Fitted
    trainer = make_trainer(sys.argv[1], 2)
    trainer.fit(system, make_loader())
    losses.append(trainer.callback_metrics["train/loss/total"])
    names.append(list(system.state_dict()))
assert graphs
torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)
assert names[0] == names[1]
"""


def test_compiled_blocks_give_the_same_loss_and_names(tmp_path):
    """In a process without the shape checks of these tests, which cannot be traced."""
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), str(here.parents[1])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", COMPILED, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
