"""encode.py: what the cache of latents holds, and that it can be gone on with and made again."""

import pytest
import torch
from ball_road import NUM_SAMPLES, encode_to
from diffusers import AutoencoderKL

import encode
from data_pipeline.command_line import compose
from data_pipeline.loading.samples import LatentDataset
from modules.latents import codec
from modules.latents.autoencoder_files import load_autoencoder
from modules.latents.cache import read_cache
from modules.latents.codec import LatentCodec
from modules.latents.spec import LatentSpec


def test_cache_holds_every_sample_and_says_what_it_is(runs, shards):
    cache = read_cache(runs / "latents")
    assert set(cache["vocabulary"][2:]) == {"a", "ball", "sphere", "red", "green", "blue"}
    dataset = LatentDataset(runs / "latents", keep_decoded=False)
    samples = [dataset[(i, i)] for i in range(len(dataset))]
    assert [sample["uid"] for sample in samples] == [f"ball_{i}" for i in range(NUM_SAMPLES)]
    assert samples[1]["caption"] == "a green ball"
    latents = torch.stack([sample["latents"] for sample in samples])
    assert latents.shape == (NUM_SAMPLES, 3, 6, 512, 1, 1)
    assert latents.mean(dim=(0, 2, 4, 5)).abs().max() < 1e-2
    assert latents.square().mean().item() == pytest.approx(1.0, abs=0.01)
    # One cell a view: the share of a ball's disc in the image of 1.1 world units.
    coverage = torch.stack([sample["coverage"] for sample in samples])
    radii = torch.tensor([0.3 + 0.03 * i for i in range(NUM_SAMPLES)])
    discs = (torch.pi * (radii / 1.1) ** 2)[:, None, None, None].expand(-1, 6, 1, 1)
    torch.testing.assert_close(coverage, discs, rtol=0.05, atol=0.01)


def test_cached_latents_decode_to_the_rendered_images(runs, shards):
    spec = LatentSpec.from_json(read_cache(runs / "latents")["latent_spec"], "cache")
    codec = LatentCodec(load_autoencoder(runs / "pipeline" / "autoencoder"), spec)
    sample = LatentDataset(runs / "latents", keep_decoded=False)[(0, 0)]
    decoded = codec.decode(sample["latents"][None])[0]
    # A linear code of flat colours and smooth normals is close after no training to speak of.
    normal = decoded[1, 0, :, 16, 16]
    assert torch.nn.functional.normalize(normal, dim=0)[1] < -0.9  # front view: facing -Y
    assert decoded[0, 0, :, 16, 16].tolist() == pytest.approx([0.57, -0.69, -0.69], abs=0.25)
    assert decoded[0, 0, :, 0, 0].min() > 0.8


def test_encoding_the_same_inputs_again_touches_nothing(runs, shards, capsys):
    before = (runs / "latents" / "manifest.json").stat().st_mtime_ns
    encode_to(runs / "latents", shards, runs)
    assert "encoded already" in capsys.readouterr().out
    assert (runs / "latents" / "manifest.json").stat().st_mtime_ns == before


def test_encoding_gives_equal_bytes_twice(runs, shards):
    encode_to(runs / "again", shards, runs)
    for name in ("latents-000000.tar", "manifest.json"):
        assert (runs / "again" / name).read_bytes() == (runs / "latents" / name).read_bytes()


def test_an_interrupted_encoding_goes_on_with_the_samples_that_are_left(runs, shards, monkeypatch):
    original, encoded = codec.encode_packed, []

    def counted(*given):
        if len(encoded) == 3:  # first time round: what Ctrl-C does in the middle of the fourth
            encoded.append(None)
            raise KeyboardInterrupt
        encoded.append(None)
        return original(*given)

    monkeypatch.setattr(codec, "encode_packed", counted)
    with pytest.raises(KeyboardInterrupt):
        encode_to(runs / "stopped", shards, runs)
    assert not (runs / "stopped").exists()
    encode_to(runs / "stopped", shards, runs)
    assert len(encoded) == NUM_SAMPLES + 1
    for name in ("latents-000000.tar", "manifest.json"):
        assert (runs / "stopped" / name).read_bytes() == (runs / "latents" / name).read_bytes()
    assert not (runs / ".stopped.encoding").exists()


def test_carried_statistics_are_corrected_for_normal_and_coord_as_asked(shards, tmp_path):
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, scaling_factor=0.1,
    ).save_pretrained(tmp_path / "vae")  # fmt: skip
    arguments = [f"shards={shards}", f"autoencoder={tmp_path}/vae", "packing=2"]
    arguments += ["statistics=autoencoder"]
    stds = {}
    for applied in ("true", "false"):
        out = tmp_path / applied
        encode.main(compose("encode", [*arguments, f"out={out}", f"modality_affine={applied}"]))
        assert LatentSpec.from_json(read_cache(out)["latent_spec"], "cache").is_carried
        dataset = LatentDataset(out, keep_decoded=False)
        latents = torch.stack([dataset[(i, i)]["latents"] for i in range(len(dataset))])
        stds[applied] = latents.transpose(0, 1).flatten(1).std(dim=1)
    assert stds["false"].max() < 0.5  # by far too small a factor
    torch.testing.assert_close(stds["true"][1:], torch.ones(2), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(stds["true"][0], stds["false"][0])
