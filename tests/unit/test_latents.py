import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoencoderTiny
from tiny_autoencoder import TinyDC

from data_pipeline.contract import UserError
from modules.latents.autoencoder_files import load_autoencoder
from modules.latents.cache import cache_members, measure_spec, own_spec, read_cache
from modules.latents.codec import LatentCodec, encode_packed, own_statistics, pack, unpack
from modules.latents.modality_affine import fit_modalities
from modules.latents.raw_parts import RawLatents, RawPart
from modules.latents.spec import LatentSpec, encoder_fingerprint, fingerprint
from modules.latents.taef2 import TAEF2

AUTOENCODERS = {
    "dc": TinyDC,
    "kl": lambda: AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        latent_channels=4,
    ),
    "tiny": lambda: AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    ),
    "flux2": lambda: AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
    ),
    "taef2": lambda: TAEF2(latent_channels=6, width=8),
}


def make_autoencoder(kind: str = "dc") -> torch.nn.Module:
    torch.manual_seed(0)
    return AUTOENCODERS[kind]().eval().requires_grad_(False)


def make_images(num_samples: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(num_samples, 3, 2, 3, 16, 16, generator=generator) * 2.0 - 1.0


def make_part(autoencoder: torch.nn.Module, images: torch.Tensor) -> RawPart:
    uids = [f"sample_{i}" for i in range(len(images))]
    captions = [["x"] * i for i in range(len(images))]
    latents = encode_packed(autoencoder, images, packing=2)
    return RawPart(uids, captions, latents, torch.rand(latents[:, 0, :, 0].shape))


def make_spec(autoencoder: torch.nn.Module) -> LatentSpec:
    return measure_spec(
        [make_part(autoencoder, make_images())],
        packing=2,
        autoencoder=encoder_fingerprint(autoencoder),
    )


def test_unpack_undoes_pack():
    latents = torch.randn(2, 3, 5, 4, 8, 8)
    packed = pack(latents, 4)
    assert packed.shape == (2, 3, 5, 64, 2, 2)
    assert torch.equal(unpack(packed, 4), latents)


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_codec_normalises_the_set_it_was_measured_on_and_decodes_what_the_autoencoder_does(kind):
    autoencoder = make_autoencoder(kind)
    codec = LatentCodec(autoencoder, make_spec(autoencoder), chunk_px=5 * 16 * 16)
    latents = codec.encode(make_images())
    assert latents.shape[:4] == (3, 3, 2, codec.spec.channels)
    assert latents.mean(dim=(0, 2, 4, 5)).abs().max() < 1e-4
    torch.testing.assert_close(
        latents.square().mean(dim=(0, 2, 3, 4, 5)), torch.ones(3), rtol=1e-3, atol=1e-3
    )
    one = make_images()[1, 2, 1:2]
    encoded = autoencoder.encode(one)
    raw = (
        encoded.latent_dist.mode()
        if kind in ("kl", "flux2")
        else (encoded.latents if kind in ("tiny", "taef2") else encoded.latent)
    )
    expected = autoencoder.decode(raw).sample.clamp(-1.0, 1.0)
    torch.testing.assert_close(codec.decode(latents)[1, 2, 1:2], expected, rtol=1e-3, atol=1e-3)


def test_the_result_does_not_depend_on_the_chunk():
    autoencoder = make_autoencoder()
    spec = make_spec(autoencoder)
    small, large = (LatentCodec(autoencoder, spec, chunk_px=px) for px in (1, 2**20))
    torch.testing.assert_close(
        small.encode(make_images()), large.encode(make_images()), rtol=1e-4, atol=1e-5
    )


def test_statistics_do_not_depend_on_how_the_set_is_cut_into_batches():
    autoencoder, images = make_autoencoder(), make_images()
    parts = [make_part(autoencoder, part) for part in (images, images[:1], images[1:])]
    whole = measure_spec(parts[:1], packing=2, autoencoder="")
    assert not whole.is_carried
    cut = measure_spec(parts[1:], packing=2, autoencoder="")
    np.testing.assert_allclose(whole.mean, cut.mean, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(whole.std, cut.std, rtol=1e-4)


def test_flux2_latents_are_normalised_as_its_own_pipeline_does_it():
    autoencoder = make_autoencoder("flux2")
    autoencoder.bn.running_mean.uniform_(-0.5, 0.5)
    autoencoder.bn.running_var.uniform_(0.5, 2.0)
    spec = own_spec([make_part(autoencoder, make_images())], autoencoder)
    assert spec.is_carried
    assert LatentSpec.from_json(spec.to_json(), "").is_carried
    codec = LatentCodec(autoencoder, spec)
    one = make_images()[:1, 1, :1]
    latents = codec.encode(make_images())[:1, 1, 0]
    raw = autoencoder.encode(one[:, 0]).latent_dist.mode()
    # As Flux2Pipeline._patchify_latents and _encode_vae_image have it
    cells = raw.view(1, 4, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(1, 16, 2, 2)
    mean, variance = autoencoder.bn.running_mean, autoencoder.bn.running_var
    std = (variance + autoencoder.config.batch_norm_eps).sqrt()
    expected = (cells - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)


def make_offset_parts() -> list[RawPart]:
    """Of a set whose normals are dim and whose coords are bright to the autoencoder."""
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(6, 3, 2, 16, 2, 2, generator=generator)
    latents *= torch.tensor([1.0, 0.2, 1.0])[:, None, None, None, None]
    latents += torch.tensor([0.6, 0.1, 1.5])[:, None, None, None, None]
    return [RawPart(["a"] * 3, [[]] * 3, part, torch.rand(3, 2, 2, 2)) for part in latents.split(3)]


def test_normal_and_coord_are_corrected_where_the_carried_statistics_are_off(caplog):
    autoencoder, parts = make_autoencoder("flux2"), make_offset_parts()
    own = own_spec(parts, autoencoder)
    spec = fit_modalities(parts, own, apply=True)
    latents = torch.cat([part.latents for part in parts])
    mean, std = (torch.tensor(v)[:, None, :, None, None] for v in (spec.mean, spec.std))
    normalised = ((latents - mean) / std).transpose(0, 1).flatten(1)
    assert normalised.mean(dim=1)[1:].abs().max() < 1e-3
    torch.testing.assert_close(normalised.std(dim=1)[1:], torch.ones(2), rtol=1e-3, atol=1e-3)
    assert (spec.mean[0], spec.std[0]) == (own.mean[0], own.std[0])  # rgb is the backbone's
    assert spec.is_carried
    assert "; normal less 0.08" in spec.origin
    assert LatentSpec.from_json(json.loads(json.dumps(spec.to_json())), "") == spec
    said = [record.getMessage() for record in caplog.records]
    assert [message.split()[2] for message in said] == ["rgb", "normal", "coord"]
    assert said[0].endswith("left so, as the backbone knows rgb")
    assert "deviation 0.21" in said[1]
    assert said[2].endswith("corrected")
    caplog.clear()
    assert fit_modalities(parts, spec, apply=True).mean[1:] == spec.mean[1:]  # nothing is off now
    assert [record.getMessage().split()[2] for record in caplog.records] == ["rgb"]
    caplog.clear()
    assert fit_modalities(parts, own, apply=False) == own
    assert "left so (modality_affine=true" in caplog.records[1].getMessage()
    codec = LatentCodec(autoencoder, spec)
    images = make_images()
    raw = encode_packed(autoencoder, images, 2)
    torch.testing.assert_close(codec.encode(images) * codec.std + codec.mean, raw)
    decoded = LatentCodec(autoencoder, own)
    torch.testing.assert_close(
        codec.decode(codec.encode(images)),
        decoded.decode(decoded.encode(images)),
        atol=1e-4,
        rtol=0,
    )


def test_statistics_that_fit_are_left_alone_without_a_word(caplog):
    autoencoder = make_autoencoder("flux2")
    latents = torch.randn(4, 3, 2, 16, 2, 2, generator=torch.Generator().manual_seed(3))
    parts = [RawPart(["a"] * 4, [[]] * 4, latents, torch.rand(4, 2, 2, 2))]
    own = own_spec(parts, autoencoder)
    assert fit_modalities(parts, own, apply=True) == own
    assert not caplog.records


def test_statistics_that_an_autoencoder_does_not_carry_or_pack_so_are_refused():
    parts = [make_part(make_autoencoder(), make_images())]
    with pytest.raises(UserError, match="AutoencoderDC carries no statistics"):
        own_spec(parts, make_autoencoder())
    with pytest.raises(UserError, match="of packing=2"):
        own_spec(parts, make_autoencoder("flux2"))


def test_a_spec_survives_a_file_bit_for_bit(tmp_path):
    spec = make_spec(make_autoencoder())
    spec.save(tmp_path)
    assert LatentSpec.load(tmp_path) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [({"conventions": 99}, "conventions version 99"), ({"std": [[1.0]]}, "not a latent spec")],
)
def test_a_spec_that_does_not_fit_is_refused(change, message):
    content = json.loads(json.dumps(make_spec(make_autoencoder()).to_json())) | change
    with pytest.raises(UserError, match=message):
        LatentSpec.from_json(content, "somewhere")


def test_latents_of_another_autoencoder_are_refused():
    autoencoder = make_autoencoder()
    spec = make_spec(autoencoder)
    next(iter(autoencoder.parameters())).data[0] += 0.1
    with pytest.raises(UserError, match="were made by encoder"):
        LatentCodec(autoencoder, spec)


def test_a_packing_that_does_not_fit_the_images_is_refused():
    with pytest.raises(UserError, match="packing=3 does not divide the 4"):
        encode_packed(make_autoencoder(), make_images(), packing=3)


def test_fingerprint_names_the_weights_and_survives_a_file(tmp_path):
    autoencoder = make_autoencoder()
    autoencoder.save_pretrained(tmp_path)
    loaded = load_autoencoder(tmp_path)
    assert fingerprint(loaded) == fingerprint(autoencoder)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert fingerprint(make_autoencoder("tiny")) != fingerprint(autoencoder)


def test_a_folder_without_an_autoencoder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no autoencoder"):
        load_autoencoder(tmp_path)


def test_the_cache_holds_what_the_codec_gives():
    autoencoder, images = make_autoencoder(), make_images()
    spec = make_spec(autoencoder)
    samples = dict(cache_members([make_part(autoencoder, images)], spec))
    assert list(samples) == ["sample_0", "sample_1", "sample_2"]
    meta = json.loads(samples["sample_2"]["meta.json"])
    assert meta == {"uid": "sample_2", "captions": ["x", "x"], "conventions": 1}
    stored = np.load(io.BytesIO(samples["sample_2"]["latents.npy"]))
    assert stored.dtype == np.float16
    expected = LatentCodec(autoencoder, spec).encode(images)[2].numpy()
    np.testing.assert_allclose(stored, expected, atol=2e-3)


def test_finished_parts_survive_until_the_inputs_change(tmp_path):
    part = make_part(make_autoencoder(), make_images())
    RawLatents(tmp_path / "parts", {"a": 1}).write(8, part)
    again = RawLatents(tmp_path / "parts", {"a": 1})
    assert again.has(8)
    assert not again.has(0)
    [found] = again
    assert (found.uids, found.captions) == (part.uids, part.captions)
    assert torch.equal(found.latents, part.latents)
    again.write(8, replace(part, vision=torch.ones(3, 2, 5, 4)))
    assert next(iter(again)).vision is None  # statistics need none
    assert next(again.read(vision=True)).vision.shape == (3, 2, 5, 4)
    assert not RawLatents(tmp_path / "parts", {"a": 2}).has(8)


def test_a_folder_that_is_no_cache_is_named(tmp_path):
    with pytest.raises(UserError, match=r"make the latents with encode\.py"):
        read_cache(tmp_path)
    (tmp_path / "manifest.json").write_text('{"kind": "samples"}')
    with pytest.raises(UserError, match="holds no latents"):
        read_cache(tmp_path)


def test_the_factor_and_shift_of_an_older_autoencoder_are_its_statistics():
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4, scaling_factor=1.5,
        shift_factor=0.25,
    )  # fmt: skip
    found = own_statistics(autoencoder)
    assert found is not None
    packing, mean, std = found
    assert (packing, mean.shape) == (2, (16,))
    assert mean.unique().tolist() == [0.25]
    assert std.unique().tolist() == pytest.approx([1 / 1.5])
    assert own_statistics(TinyDC()) is None
