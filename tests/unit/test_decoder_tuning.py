"""Fine-tuning a decoder: what may change, what may not, and what the losses see."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from test_autoencoder import make_batch
from test_latents import AUTOENCODERS, make_images, make_spec
from torch.utils.data import DataLoader

from data_pipeline.contract import MODALITIES, UserError
from modules.callbacks.ema import WeightAverage
from modules.callbacks.export import ExportStage
from modules.latents.autoencoder_files import load_autoencoder
from modules.latents.codec import LatentCodec, encode_packed
from modules.latents.spec import encoder_fingerprint, fingerprint
from modules.losses.image import position_losses
from modules.systems.autoencoder import AutoencoderSystem
from modules.systems.image_draw import draw_images

RGB, NORMAL, COORD = range(len(MODALITIES))


def make_system(network: Any, **options: Any) -> AutoencoderSystem:
    optimizer = partial(torch.optim.AdamW, lr=1e-2)
    options = {"position_weight": 1.0, "depth_weight": 1.0} | options
    system = AutoencoderSystem(network, optimizer, frozen_encoder=True, **options)
    system.log = system.log_dict = lambda *_, **__: None
    return system


def tuned(kind: str, folder: Path, steps: int = 2) -> tuple[Any, Any]:
    """Return an autoencoder from a file, and the same after steps of training, export, loading."""
    torch.manual_seed(0)
    AUTOENCODERS[kind]().save_pretrained(folder / "original")
    system = make_system(partial(load_autoencoder, folder / "original"), images_per_step=6)
    system.configure_model()
    optimizer = system.configure_optimizers()
    for step in range(steps):
        optimizer.zero_grad()
        system.training_step(make_batch(), step).backward()
        optimizer.step()
    (folder / "tuned").mkdir()
    system.export(folder / "tuned")
    return load_autoencoder(folder / "original"), load_autoencoder(folder / "tuned")


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_the_encoder_stays_bit_for_bit_and_all_of_the_decoder_learns(kind, tmp_path):
    before, after = tuned(kind, tmp_path)
    assert type(after) is type(before)
    changed = {
        name
        for (name, old), new in zip(
            before.state_dict().items(), after.state_dict().values(), strict=True
        )
        if not torch.equal(old, new)
    }
    decoder = {n for n in before.state_dict() if n.startswith(("decoder.", "post_quant_conv."))}
    # Attention of a single latent cell's group and key biases cancel.
    assert {n for n in decoder - changed if "to_k.bias" not in n} == set()
    assert changed <= decoder
    images = make_images()
    assert torch.equal(encode_packed(before, images, 2), encode_packed(after, images, 2))


def test_a_denoiser_of_the_originals_latents_takes_the_tuned_decoder_and_no_other_encoder(tmp_path):
    before, after = tuned("flux2", tmp_path)
    spec = make_spec(before)
    assert fingerprint(after) != fingerprint(before)
    assert spec.autoencoder == encoder_fingerprint(before) == encoder_fingerprint(after)
    original, finetuned = LatentCodec(before, spec), LatentCodec(after, spec)
    latents = original.encode(make_images())
    assert torch.equal(latents, finetuned.encode(make_images()))
    assert not torch.equal(original.decode(latents), finetuned.decode(latents))
    with torch.no_grad():
        after.encoder.conv_in.bias[0] += 1e-3
    with pytest.raises(UserError, match="the latents were made by encoder"):
        LatentCodec(after, spec)


def test_a_spec_of_before_names_all_weights_and_is_still_taken(tmp_path):
    before, after = tuned("taef2", tmp_path)
    spec = make_spec(before)
    object.__setattr__(spec, "autoencoder", fingerprint(before))
    LatentCodec(before, spec)
    with pytest.raises(UserError, match="encode and train again"):
        LatentCodec(after, spec)


def test_only_the_decoder_is_optimized_and_the_latents_are_those_of_inference(tmp_path):
    system = make_system(AUTOENCODERS["kl"], images_per_step=4)
    system.configure_model()
    optimized = {
        id(p) for group in system.configure_optimizers().param_groups for p in group["params"]
    }
    parts = system.autoencoder.decoder, system.autoencoder.post_quant_conv
    assert optimized == {id(p) for part in parts for p in part.parameters()}
    images = make_images().flatten(0, 2)
    with torch.autocast("cpu", torch.bfloat16):
        latents, divergence = system._encode(images, torch.Generator())
    assert torch.equal(latents, system.autoencoder.encode(images).latent_dist.mode())
    assert divergence == 0


def test_position_losses_are_distances_in_world_units_and_depth_lies_along_the_axis():
    target = torch.zeros(2, 3, 4, 4)
    target[:, 0] = 0.5
    predicted = target.clone()
    predicted[:, 1], predicted[:, 2] = 0.6, 0.8  # image units: .3 and .4 of the world
    hit = torch.zeros(2, 4, 4, dtype=torch.bool)
    hit[:, :2] = True
    predicted[:, :, 2:] = 9.0  # outside of the asset nothing counts
    axis = torch.tensor([[0.0, -1.0, 0.0], [0.0, 0.0, 1.0]])
    position, depth = position_losses(predicted, target, hit, axis)
    assert position.item() == pytest.approx(0.5)
    assert depth.item() == pytest.approx((0.3 + 0.4) / 2)
    assert position_losses(target, target, hit, axis) == (0.0, 0.0)
    assert position_losses(predicted, target, ~hit & hit, axis) == (0.0, 0.0)


@pytest.mark.parametrize("weight", ["position_weight", "depth_weight", "normal_weight"])
def test_each_weight_reaches_the_loss(weight):
    torch.manual_seed(0)
    losses = []
    for value in (0.0, 1.0):
        system = make_system(AUTOENCODERS["taef2"], images_per_step=12, **{weight: value})
        torch.manual_seed(1)
        system.configure_model()
        losses.append(system.training_step(make_batch(), 0).item())
    assert losses[1] > losses[0] + 1e-3


def test_a_modality_without_weight_gives_no_reconstruction_loss():
    batch, off = make_batch(), {"normal_weight": 0.0, "position_weight": 0.0, "depth_weight": 0.0}
    batch["images"] = batch["images"].clone()

    def loss() -> float:
        torch.manual_seed(1)
        system = make_system(
            AUTOENCODERS["taef2"], images_per_step=12, modality_weights=(1.0, 1.0, 0.0), **off
        )
        system.configure_model()
        return system.training_step(batch, 0).item()

    before = loss()
    batch["images"][:, COORD] *= -1.0
    assert loss() == pytest.approx(before)
    batch["images"][:, NORMAL] *= -1.0
    assert loss() != pytest.approx(before)


def test_reduced_views_keep_pixels_of_geometry_and_average_colours():
    batch = make_batch()
    drawn = draw_images(batch, torch.Generator().manual_seed(0), num_images=2, reductions=[2])
    assert drawn.images.shape == (8, 3, 8, 8)  # four times as many as at full size
    flat = batch["images"].flatten(0, 2)
    for image, modality in zip(drawn.images, drawn.modality, strict=True):
        if modality == RGB:
            choices = [torch.nn.functional.avg_pool2d(flat, 2)]
        else:
            choices = [flat[..., top::2, left::2] for top in (0, 1) for left in (0, 1)]
        found = [(each - image).abs().amax(dim=(1, 2, 3)).min().item() for each in choices]
        assert min(found) < 1e-6
    coord = drawn.modality == COORD
    flat_hit = batch["hit"].flatten(0, 1)
    for hit in drawn.hit[coord]:
        assert any(
            torch.equal(each, hit)
            for t in (0, 1)
            for n in (0, 1)
            for each in flat_hit[:, t::2, n::2]
        )
    with pytest.raises(UserError, match="3 does not divide 16"):
        draw_images(batch, torch.Generator(), num_images=1, reductions=[3])


def test_crops_of_image_and_mask_are_one_window_of_their_view():
    batch = make_batch()
    batch["hit"] = batch["images"][:, COORD, :, 0] > 0  # told by the image itself
    drawn = draw_images(batch, torch.Generator().manual_seed(2), num_images=12, crop_px=8)
    assert drawn.images.shape == (12, 3, 8, 8)
    coord = drawn.modality == COORD
    assert torch.equal(drawn.hit[coord], drawn.images[coord][:, 0] > 0)
    windows = batch["images"].flatten(0, 2).unfold(2, 8, 1).unfold(3, 8, 1)
    for image in drawn.images[:4]:
        distance = (windows - image[None, :, None, None]).abs().amax(dim=(1, 4, 5))
        assert distance.min() == 0
    whole = draw_images(batch, torch.Generator(), num_images=12, crop_px=64)
    assert whole.images.shape[-1] == 16


def test_axes_belong_to_the_views_of_the_drawn_images():
    batch = make_batch()
    code = 10.0 * torch.arange(2)[:, None] + torch.arange(2)  # sample, view
    batch["images"] = code[:, None, :, None, None, None].expand(2, 3, 2, 3, 16, 16)
    batch["camera_to_world"][..., :3, 2] = code[..., None]
    drawn = draw_images(batch, torch.Generator(), num_images=12)
    assert torch.equal(drawn.axis[:, 0], drawn.images[:, 0, 0, 0])


class CutOff(lightning.Callback):
    """Remembers the averages of step 2 and breaks the run off in step 3."""

    def __init__(self, average: WeightAverage) -> None:
        self.average, self.at_two = average, {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == 2:
            self.at_two = {name: x.clone() for name, x in self.average.average.items()}
        if trainer.global_step == 3:
            raise RuntimeError("cut off")


def test_a_run_that_is_cut_off_leaves_its_newest_averages(tmp_path):
    average = WeightAverage()
    cut_off = CutOff(average)
    trainer = lightning.Trainer(
        accelerator="cpu",
        callbacks=[average, ExportStage(tmp_path, every_n_steps=2), cut_off],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    system = make_system(AUTOENCODERS["taef2"], images_per_step=4)
    batches: Any = [make_batch()] * 4
    with pytest.raises(RuntimeError, match="cut off"):
        trainer.fit(system, DataLoader(batches, batch_size=None))
    exported = load_autoencoder(tmp_path / "autoencoder").state_dict()
    assert set(cut_off.at_two) == {f"autoencoder.{n}" for n in exported if "decoder." in n}
    for name, values in cut_off.at_two.items():
        assert torch.equal(exported[name.removeprefix("autoencoder.")], values)
    now = system.autoencoder.decoder[0].weight
    assert not torch.equal(now, cut_off.at_two["autoencoder.decoder.0.weight"])


def test_accumulated_batches_are_exported_once_a_step_and_never_before_the_first(
    tmp_path, monkeypatch
):
    steps = []
    trainer = lightning.Trainer(
        accelerator="cpu",
        callbacks=[ExportStage(tmp_path, every_n_steps=1)],
        accumulate_grad_batches=2,
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    monkeypatch.setattr(
        "modules.callbacks.export.export_stage", lambda *_: steps.append(trainer.global_step)
    )
    system = make_system(AUTOENCODERS["taef2"], images_per_step=4)
    batches: Any = [make_batch()] * 4
    trainer.fit(system, DataLoader(batches, batch_size=None))
    assert steps == [1, 2, 2]  # and once more at the end


def test_channels_and_sizes_that_do_not_fit_are_told():
    grey = make_system(
        partial(AutoencoderKL, in_channels=1, block_out_channels=(8,), norm_num_groups=4)
    )
    with pytest.raises(UserError, match="in_channels=1"):
        grey.configure_model()
    system = make_system(AUTOENCODERS["taef2"], crop_px=12)
    system.configure_model()
    with pytest.raises(UserError, match="images of 12 px come back as 16 px"):
        system.training_step(make_batch(), 0)


def test_a_network_without_a_decoder_and_a_file_without_its_weights_are_told(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "Flux2Transformer2DModel"}))
    with pytest.raises(
        UserError, match="Flux2Transformer2DModel, which has no encoder and decoder"
    ):
        load_autoencoder(tmp_path)
    for kind in ("taef2", "kl"):
        folder = tmp_path / kind
        AUTOENCODERS[kind]().save_pretrained(folder)
        path = folder / "diffusion_pytorch_model.safetensors"
        weights = load_file(path)
        save_file({n: x for n, x in weights.items() if not n.startswith("decoder.")}, path)
        with pytest.raises(UserError, match="weights cannot be read"):
            load_autoencoder(folder)
