"""Each condition is disconnected in turn, and the alarm names it and no other."""

import logging

import lightning
import pytest
import torch

from data_pipeline.contract import UserError
from modules.callbacks.condition_probes import ConditionProbes, condition_movements
from modules.losses.flow import RGB, TimestepMix
from modules.networks.denoiser import JointDenoiser
from modules.networks.text_encoder import TextEncoder, Vocabulary
from modules.systems.latent_diffusion import LatentDiffusionSystem
from modules.systems.own_references import OwnReferences

VIEWS, CHANNELS = 2, 8
CONDITIONS = (
    "text", "image", "vision", "view", "view_embedding", "modality_embedding", "geometry",
)  # fmt: skip


class Deaf(JointDenoiser):
    """A denoiser in which one condition is dead, in a way that such things have been shipped."""

    dead: str | None = None

    def forward(self, latents, timesteps, text, *, references=None, views=None, **options):
        if self.dead == "text":
            text = torch.zeros_like(text)
        if self.dead == "image":
            references = torch.zeros_like(references)
        if self.dead == "view":
            views = None
        if self.dead == "geometry":
            latents = latents * (timesteps > 0.0)[..., None, None, None, None]
        return super().forward(
            latents, timesteps, text, references=references, views=views, **options
        )


def make_denoiser(dead: str | None) -> JointDenoiser:
    torch.manual_seed(0)
    denoiser = Deaf.from_scratch(
        num_views=VIEWS, in_channels=CHANNELS, num_layers=1, num_single_layers=1,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8,
        timestep_guidance_channels=16, axes_dims_rope=(2, 2, 2, 2), guidance_embeds=False,
        vision_width=4,
    )  # fmt: skip
    assert isinstance(denoiser, Deaf)
    denoiser.dead = dead
    if dead != "vision":  # a layer that begins at zero, and stays there
        torch.nn.init.normal_(denoiser.vision.weight)
    for name in ("view_embedding", "modality_embedding"):
        if name != dead:  # a flag that begins at zero, and stays there
            torch.nn.init.normal_(getattr(denoiser, name), std=0.1)
    torch.nn.init.normal_(denoiser.backbone.transformer.proj_out.weight, std=0.2)
    return denoiser


def make_system(dead: str | None = None, **options) -> LatentDiffusionSystem:
    options = {"image_share": 0.9, "mix": TimestepMix()} | options
    system = LatentDiffusionSystem(
        options.pop("denoiser", lambda: make_denoiser(dead)),
        lambda: TextEncoder(max_words=16, length=4, width=8, num_heads=2),
        torch.optim.AdamW,
        "unused",
        **options,
    )
    system.configure_model()
    system.text_encoder.vocabulary = Vocabulary.from_captions(["a red chair", "a blue mug"])
    return system


def make_batch(captions=("a red chair", "a blue mug")):
    generator = torch.Generator().manual_seed(1)  # not the noise of the probes
    latents = torch.randn(len(captions), 3, VIEWS, CHANNELS, 2, 2, generator=generator)
    vision = torch.randn(len(captions), VIEWS, 3, 4, generator=generator)
    return {"latents": latents, "caption": list(captions), "vision": vision}


def movements(system, batch=None) -> dict[str, float]:
    found = condition_movements(system, batch or make_batch(), 0.7)
    return {name: value.item() for name, value in found.items()}


def test_live_conditions_all_move_the_prediction_and_raise_no_alarm(caplog):
    found = movements(make_system())
    assert tuple(sorted(found)) == tuple(sorted(CONDITIONS))
    assert min(found.values()) > 1e-3
    ConditionProbes(error=True).check(found, step=1000)
    assert not caplog.records


@pytest.mark.parametrize("dead", CONDITIONS)
def test_a_dead_condition_is_named_and_no_other(dead, caplog):
    found = movements(make_system(dead))
    assert found[dead] < 1e-6
    assert min(value for name, value in found.items() if name != dead) > 1e-3
    with caplog.at_level(logging.WARNING):
        ConditionProbes().check(found, step=1000)
    [record] = caplog.records
    assert f"does not depend on {dead} (" in record.getMessage()
    with pytest.raises(UserError, match=f"does not depend on {dead} "):
        ConditionProbes(error=True).check(found, step=1000)
    ConditionProbes(error=True, after_steps=2000).check(found, step=1000)


def test_a_prediction_that_is_not_a_number_is_alarming_too():
    with pytest.raises(UserError, match="does not depend on text"):
        ConditionProbes(error=True).check({"text": float("nan")}, step=1000)


def test_what_is_not_trained_on_is_left_out():
    joint = TimestepMix(joint=1.0, texture=0.0, geometry=0.0, independent=0.0)
    found = movements(make_system(image_share=0.0, mix=joint, text_dropout=1.0))
    assert tuple(found) == ("view", "view_embedding", "modality_embedding")


@pytest.mark.parametrize("dead", [None, "text", "image", "geometry"])
@pytest.mark.parametrize("captions", [["a mug"], ["a mug", "a mug"]])
def test_a_batch_without_another_sample_or_caption_probes_all_conditions(dead, captions):
    found = movements(make_system(dead), make_batch(captions))
    assert tuple(sorted(found)) == tuple(sorted(CONDITIONS))
    assert [name for name, value in found.items() if value < 1e-4] == ([dead] if dead else [])


@pytest.mark.parametrize(
    ("batches", "differing"),
    [([["a red chair"], ["a blue mug"]], 1), ([["a red chair", "a blue mug"]] * 2, 4)],
)
def test_wrong_captions_are_those_of_the_sample_before(batches, differing, monkeypatch):
    system = make_system()
    counts = []
    monkeypatch.setattr(system, "log_dict", lambda figures, **options: None)
    monkeypatch.setattr(
        system, "log", lambda name, value, **options: counts.append((value, options["batch_size"]))
    )
    for index, captions in enumerate(batches):
        system.validation_step(make_batch(captions), index)
    assert sum(count for _, count in counts) == differing
    assert all((value != 0.0) == (count > 0) for value, count in counts)


class Fitted(LatentDiffusionSystem):
    """Without a latent cache on disk."""

    def setup(self, stage):
        pass

    def on_fit_start(self):
        pass


@pytest.mark.parametrize("dead", [None, "image"])
def test_training_logs_the_probes_and_a_dead_condition_ends_it(dead, tmp_path):
    system = make_system(dead)
    system.__class__ = Fitted
    callback = ConditionProbes(after_steps=1, error=True)
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=1, logger=False, callbacks=[callback], limit_val_batches=1,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=tmp_path, num_sanity_val_steps=0,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader([make_batch()], batch_size=None)
    if dead is None:
        trainer.fit(system, loader, loader)
        for name in CONDITIONS:
            assert trainer.callback_metrics[f"val/probe/{name}"] > 1e-4
    else:
        with pytest.raises(UserError, match="does not depend on image "):
            trainer.fit(system, loader, loader)


def test_references_are_own_rgb_views_in_their_share_and_zero_otherwise():
    latents = torch.randn(2000, 3, VIEWS, CHANNELS, 1, 1)
    rgb = latents[:, RGB]
    references = OwnReferences(0.7, [1]).draw(latents, torch.Generator().manual_seed(0)).pick(rgb)
    seen = references.flatten(1).abs().sum(dim=1) > 0
    assert seen.float().mean().item() == pytest.approx(0.7, abs=0.04)
    assert torch.equal(references[seen, 0], rgb[seen, 1])
    drawn = OwnReferences(0.7).draw(latents, torch.Generator().manual_seed(0))
    for view in range(VIEWS):
        same = (drawn.pick(rgb)[:, 0] == rgb[:, view]).flatten(1).all(dim=1)
        assert same.float().mean().item() == pytest.approx(0.35, abs=0.04)


def test_of_several_references_each_shows_another_view_and_every_number_occurs():
    latents = torch.randn(3000, 3, 6, CHANNELS, 1, 1)
    drawn = OwnReferences(0.9, [0, 2, 3, 5], num_slots=3).draw(
        latents, torch.Generator().manual_seed(0)
    )
    counts = drawn.shown.sum(dim=1)
    for count, share in enumerate((0.1, 0.3, 0.3, 0.3)):
        assert (counts == count).float().mean().item() == pytest.approx(share, abs=0.04)
    assert (drawn.shown.long().diff(dim=1) <= 0).all()  # the first slots are filled first
    assert (drawn.views.sort(dim=1).values.diff(dim=1) > 0).all()
    assert set(drawn.views.flatten().tolist()) == {0, 2, 3, 5}
    references = drawn.pick(latents[:, RGB])
    for row, slot in ((0, 0), (1, 2), (2, 1)):
        expected = latents[row, RGB, drawn.views[row, slot]] * drawn.shown[row, slot]
        assert torch.equal(references[row, slot], expected)
    system = make_system(num_references=2)
    conditions = system.conditions(
        make_batch(), ["a", "b"], system.references.first(make_batch()["latents"])
    )
    assert conditions.references.shape == (2, 2, CHANNELS, 2, 2)
    vision = make_batch()["vision"]
    assert torch.equal(conditions.vision, vision.flatten(1, 2))  # of both views, in their order


def test_without_references_there_is_no_slot_and_wrong_ones_are_refused():
    latents = make_batch()["latents"]
    nothing = OwnReferences(0.0)
    assert nothing.draw(latents, torch.Generator()) is None
    assert nothing.null(latents) is None
    assert OwnReferences(0.5).null(latents).pick(latents[:, RGB]).abs().max() == 0.0
    with pytest.raises(UserError, match="must lie in"):
        OwnReferences(1.5)
    with pytest.raises(UserError, match="must name a view"):
        OwnReferences(0.5, [])
    with pytest.raises(UserError, match="num_references=0 must be at least 1"):
        OwnReferences(0.5, num_slots=0)
    with pytest.raises(UserError, match="samples have views 0 to 1"):
        OwnReferences(0.5, [2]).draw(latents, torch.Generator())
    with pytest.raises(UserError, match="num_references=3: there are 2 views to see"):
        OwnReferences(0.5, num_slots=3).draw(latents, torch.Generator())
