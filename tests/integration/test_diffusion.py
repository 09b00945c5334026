"""Autoencoder, encode.py, joint diffusion, export and generation, joined through train.py."""

import json
import shutil

import numpy as np
import pytest
import torch
import trimesh
from diffusers import AutoencoderKL
from PIL import Image
from sphere_shards import sphere_members
from tiny_text import save_qwen3
from tiny_vision import NUM_TOKENS, WIDTH, save_vision

import encode
import eval as evaluation
import generate
import train
from data_pipeline.command_line import compose
from data_pipeline.contract import UserError
from data_pipeline.loading.samples import LatentDataset, decode_sample
from data_pipeline.shards.writer import ShardWriter
from modules.geometry.mesh import load_mesh
from modules.latents import codec
from modules.latents.autoencoder_files import load_autoencoder
from modules.latents.cache import read_cache
from modules.latents.codec import LatentCodec
from modules.latents.spec import LatentSpec, encoder_fingerprint
from modules.networks.vision_encoder import VisionEncoder
from modules.pipelines.generation import TextTo25D

RESOLUTION_PX, NUM_SAMPLES = 32, 6
COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def make_sample(uid: str, colour: str, radius: float) -> dict[str, bytes]:
    """Members of a sample: a ball of one colour."""
    captions = (f"a {colour} ball", f"{colour} sphere")
    category = "ball" if radius < 0.38 else "globe"  # so that no two name the same
    attributes = {"category": category, "colour": colour, "pattern": "plain", "pattern_colour": ""}
    return sphere_members(uid, COLOURS[colour], RESOLUTION_PX, radius, captions, attributes)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Six balls in two shards."""
    directory = tmp_path_factory.mktemp("data") / "shards"
    with ShardWriter(directory, "render", 4) as writer:
        for i in range(NUM_SAMPLES):
            uid, colour = f"ball_{i}", list(COLOURS)[i % 3]
            writer.add(uid, make_sample(uid, colour, 0.3 + 0.03 * i))
        writer.finish({"kind": "samples", "config_hash": "0" * 16})
    return directory


def train_stage(stage, steps, runs, name="run", *overrides):
    arguments = [
        f"experiment=tiny/{stage}",
        f"trainer.max_steps={steps}",
        "trainer.log_every_n_steps=1",
        f"paths.run_dir={runs}/{name}_{stage}",
        f"paths.pipeline_dir={runs}/pipeline",
        "data.batch_size=4",
        "~logger.wandb",
        "+trainer.enable_progress_bar=false",
        *overrides,
    ]
    assert train.main(compose("train", arguments)) is None
    return runs / f"{name}_{stage}"


SMALL = (
    "denoiser.in_channels=512",
    "denoiser.num_layers=1",
    "denoiser.num_single_layers=1",
    "denoiser.num_attention_heads=2",
)


def encode_arguments(out, shards, runs):
    return [
        f"shards={shards}", f"autoencoder={runs}/pipeline/autoencoder", f"out={out}", "packing=4",
        "batch_size=1",
    ]  # fmt: skip


def encode_to(out, shards, runs):
    encode.main(compose("encode", encode_arguments(out, shards, runs)))


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory):
    """The road: autoencoder, cache, denoiser, all exported into `pipeline`."""
    runs = tmp_path_factory.mktemp("runs")
    train_stage("autoencoder", 4, runs, "run", f"shards={shards}")
    encode_to(runs / "latents", shards, runs)
    train_stage("latent_diffusion", 6, runs, "run", f"latents={runs}/latents", *SMALL)
    return runs


def read_metrics(run_dir):
    lines = next(run_dir.glob("csv/*/metrics.csv")).read_text().splitlines()
    header = lines[0].split(",")
    return [dict(zip(header, line.split(","), strict=True)) for line in lines[1:]]


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


def test_training_logs_its_losses(runs):
    rows = read_metrics(runs / "run_latent_diffusion")
    for key in ("total", "rgb", "normal", "coord", "predict_zero_ratio"):
        values = [float(row[f"train/loss/{key}"]) for row in rows if row[f"train/loss/{key}"]]
        assert len(values) == 6
        assert np.isfinite(values).all()
    for key in ("total", "rgb", "normal", "coord", "predict_zero_ratio"):
        assert [row["step"] for row in rows if row[f"val/loss/{key}"]] == ["0", "5"]
    rows = read_metrics(runs / "run_autoencoder")
    keys = ("rgb/psnr_db", "normal/angle_deg", "coord/error", "coord/error_inside")
    for key in keys:
        assert [row["step"] for row in rows if row[f"val/{key}"]] == ["0", "3"]


@pytest.mark.parametrize("stage", ["autoencoder", "latent_diffusion"])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(stage, runs, shards, tmp_path):
    source = [f"shards={shards}"]
    if stage == "latent_diffusion":
        source = [f"latents={runs}/latents", *SMALL]
    # The schedule falls towards the planned end, so the first run plans the end of the whole.
    fixed = [*source, "system.scheduler.lr_lambda.total_steps=5"]
    whole = train_stage(stage, 5, tmp_path, "whole", *fixed)
    train_stage(stage, 3, tmp_path, "halves", *fixed)
    (tmp_path / f"halves_{stage}" / "finished").unlink()
    halves = train_stage(stage, 5, tmp_path, "halves", *fixed)
    states = [
        torch.load(run / "checkpoints" / "step-00000005.ckpt", weights_only=True)
        for run in (whole, halves)
    ]
    average = [
        next(v["average"] for k, v in state["callbacks"].items() if "WeightAverage" in k)
        for state in states
    ]
    for name, tensor in states[0]["state_dict"].items():
        torch.testing.assert_close(tensor, states[1]["state_dict"][name], rtol=0, atol=0)
    for name, tensor in average[0].items():
        torch.testing.assert_close(tensor, average[1][name], rtol=0, atol=0)


def test_the_exported_pipeline_generates_and_textures(runs):
    pipeline = TextTo25D.from_pretrained(runs / "pipeline")
    images = pipeline(["a red ball", "a blue ball"], [0, 1], steps=2)
    assert images.shape == (2, 3, 6, 3, RESOLUTION_PX, RESOLUTION_PX)
    assert torch.isfinite(images).all()
    textured = pipeline(["a red ball"], [0], steps=2, geometry=images[:1])
    assert torch.equal(textured[:, 1:], images[:1, 1:])


def test_a_given_mesh_is_textured_in_its_own_frame(runs, tmp_path, capsys):
    body = trimesh.creation.icosphere(subdivisions=3, radius=3.0)
    body.apply_translation([5000.0, 20.0, -7.0])
    body.export(tmp_path / "a ball, bare.obj")
    arguments = [
        f"mesh={tmp_path}/a ball, bare.obj", "prompt=a red ball", f"checkpoint={runs}/pipeline",
        "steps=2", "texture_px=64",
    ]  # fmt: skip
    generate.main(compose("generate", [*arguments, f"out={tmp_path}/ball.glb"]))
    given, textured = (load_mesh(tmp_path / n) for n in ("a ball, bare.obj", "ball.glb"))
    corners = textured.vertices[textured.faces]
    np.testing.assert_allclose(corners, given.vertices[given.faces], atol=1e-3)
    assert len(textured.textures) == 1
    assert textured.textures[0].shape == (64, 64, 3)
    assert "watertight" in capsys.readouterr().out
    for wrong, told in (
        ([f"mesh={tmp_path}/none.glb", f"out={tmp_path}/b.glb"], "no mesh file at"),
        ([f"mesh={tmp_path}/b.glb", f"out={tmp_path}/b.glb"], "is what is read"),
        (["refine_steps=2", f"out={tmp_path}/b.glb"], "keeps its shape"),
    ):
        with pytest.raises(UserError, match=told):
            generate.main(compose("generate", [*arguments, *wrong]))
    with pytest.raises(UserError, match="mesh=FILE needs prompt"):
        generate.main(compose("generate", ["mesh=a.obj", "sample=b", f"out={tmp_path}/b.glb"]))


def test_captions_embedded_by_a_pretrained_text_model_train_and_generate(runs, shards, tmp_path):
    save_qwen3(tmp_path / "klein")
    pretrained = [f"conditioner.source={tmp_path}/klein", "conditioner.dtype=float32"]
    pretrained += ["+conditioner.layers=[1,2,3]", "conditioner.length=48"]
    encode.main(
        compose(
            "encode",
            [
                *encode_arguments(tmp_path / "latents", shards, runs),
                "conditioner=qwen3",
                *pretrained,
            ],
        )
    )
    # three captions are trained on, of two each; and the null caption
    assert len(list((tmp_path / "latents" / "text").glob("*.safetensors"))) == 4
    shutil.copytree(runs / "pipeline" / "autoencoder", tmp_path / "pipeline" / "autoencoder")
    options = [f"latents={tmp_path}/latents", "conditioner=cached", *SMALL]
    wide = "denoiser.joint_attention_dim=48"
    train_stage(
        "latent_diffusion", 2, tmp_path, "run", *options, wide,
        "system.image_share=0.9", "system.sampling_shift=null",
    )  # fmt: skip
    exported = tmp_path / "pipeline" / "denoiser"
    assert not (exported / "text_encoder.safetensors").exists()
    pipeline = TextTo25D.from_pretrained(tmp_path / "pipeline")
    reference = torch.zeros(3, RESOLUTION_PX, RESOLUTION_PX)
    images = pipeline(
        ["a red ball", "what no training caption said"], [0, 1], steps=2,
        references=[[reference], []], solver="heun",
    )  # fmt: skip
    assert torch.isfinite(images).all()
    with pytest.raises(UserError, match="48 numbers a token and None of the whole"):
        train_stage(
            "latent_diffusion", 1, tmp_path, "narrow", *options, "denoiser.joint_attention_dim=32"
        )
    (tmp_path / "klein").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"by text_encoder\.source in .*denoiser/denoiser\.json"):
        TextTo25D.from_pretrained(tmp_path / "pipeline")


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


def test_vision_tokens_and_several_references_train_and_generate(runs, shards, tmp_path, capsys):
    save_vision("Dinov2Model", tmp_path / "dino")
    arguments = [
        *encode_arguments(tmp_path / "latents", shards, runs), "vision=dinov2",
        f"vision.source={tmp_path}/dino", "vision.dtype=float32",
    ]  # fmt: skip
    encode.main(compose("encode", arguments))
    shutil.copytree(tmp_path / "dino", tmp_path / "copy")
    capsys.readouterr()
    encode.main(compose("encode", [*arguments, f"vision.source={tmp_path}/copy"]))
    assert "encoded already" in capsys.readouterr().out  # the same weights
    told = read_cache(tmp_path / "latents")["vision"]
    assert (told["width"], told["num_tokens"]) == (WIDTH, NUM_TOKENS)
    assert "vision" not in LatentDataset(tmp_path / "latents", keep_decoded=False)[(1, 1)]
    shown = LatentDataset(tmp_path / "latents", keep_decoded=False, vision_width=WIDTH)
    sample = shown[(1, 1)]
    rendered = decode_sample(make_sample("ball_1", "green", 0.33))["images"]
    encoder = VisionEncoder(**told["encoder"])
    torch.testing.assert_close(
        sample["vision"].float(), encoder.embed(rendered[0]), rtol=1e-2, atol=1e-2
    )
    shutil.copytree(runs / "pipeline" / "autoencoder", tmp_path / "pipeline" / "autoencoder")
    seeing = [f"latents={tmp_path}/latents", *SMALL, "system.image_share=0.9"]
    seeing += ["system.num_references=2", f"denoiser.vision_width={WIDTH}"]
    metrics = read_metrics(train_stage("latent_diffusion", 3, tmp_path, "run", *seeing))
    assert float(metrics[-1]["val/probe/vision"]) > 0.0
    pipeline = TextTo25D.from_pretrained(tmp_path / "pipeline")
    assert pipeline.denoiser.vision.weight.abs().max() > 0.0  # it began at zero
    # three steps of training move little: the last layer, zero at first, is made loud
    torch.nn.init.normal_(pipeline.denoiser.backbone.transformer.proj_out.weight, std=0.2)
    references = [[rendered[0, 0], rendered[0, 3]], [rendered[0, 0]], []]
    images = pipeline([""] * 3, [0] * 3, steps=2, references=references)
    for first, second in ((0, 1), (1, 2)):
        assert (images[first] - images[second]).abs().max() > 1e-4
    for row, pictures in enumerate(references):
        alone = pipeline([""], [0], steps=2, references=[pictures])
        torch.testing.assert_close(alone[0], images[row], rtol=1e-3, atol=1e-3)
    trimesh.creation.icosphere(subdivisions=2).export(tmp_path / "ball.obj")
    Image.new("RGBA", (50, 30), (200, 40, 40, 255)).save(tmp_path / "a red, one.png")
    arguments = [
        f"mesh={tmp_path}/ball.obj", f"image={tmp_path}/a red, one.png", "steps=2", "solver=heun",
        "guidance_interval=[0.2,0.9]", f"checkpoint={tmp_path}/pipeline", "texture_px=64",
        f"out={tmp_path}/ball.glb",
    ]  # fmt: skip
    generate.main(compose("generate", arguments))
    assert (tmp_path / "ball.glb").is_file()
    with pytest.raises(UserError, match="without reference images and cannot follow any"):
        generate.main(compose("generate", [*arguments, f"checkpoint={runs}/pipeline"]))
    for wrong, said in (
        (f"latents={runs}/latents", "holds no vision tokens: encode with vision="),
        ("denoiser.vision_width=5", f"set denoiser.vision_width={WIDTH}"),
        ("system.image_share=0", "training shows none: set"),
    ):
        with pytest.raises(UserError, match=said):
            train_stage("latent_diffusion", 1, tmp_path, "wrong", *seeing, wrong)
    (tmp_path / "dino").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"by vision_encoder\.source in .*denoiser/denoiser\.json"):
        TextTo25D.from_pretrained(tmp_path / "pipeline")


def test_held_back_captions_are_made_and_what_they_show_is_measured(runs, shards, tmp_path):
    pipeline, out = tmp_path / "pipeline", tmp_path / "out"
    shutil.copytree(runs / "pipeline", pipeline)
    train_stage(
        "refiner_decoder", 1, runs, "run", f"shards={shards}", f"paths.pipeline_dir={pipeline}",
        "data.dataset.num_surface_points=128", "data.dataset.num_sdf_points=256",
    )  # fmt: skip
    arguments = [
        "task=text_to_3d", f"shards={shards}", f"checkpoint={pipeline}", f"out={out}", "num_val=1",
        "steps=2", "grid=32", "texture_px=64", "classifier_steps=2",
    ]  # fmt: skip
    evaluation.main(compose("eval", arguments))
    report = json.loads((out / "report.json").read_text())
    [pair] = report["pairs"]
    assert report["method"]["steps"] == 2
    assert "was trained on these shards" in report["notes"][0]  # as its export says
    assert {"image_colour_right", "seconds_generate"} <= pair["metrics"].keys()
    assert pair["metrics"]["excess_reprojection_px"] > 0.0  # six steps of training place no coord
    assert (out / pair["picture"]).is_file()
    assert pair["prompt"] == f"a {pair['asked']['colour']} ball"
    # one pattern in all, and pure colours: the instrument cannot err on them
    instrument = report["composition"]["instrument"]
    assert (instrument["num_training"], instrument["num_held_back"]) == (5, 1)
    assert (instrument["true"]["pattern"], instrument["true"]["colour"]) == (1.0, 1.0)
    assert sum(report["composition"]["confusion"]["colour"][pair["asked"]["colour"]].values()) == 1
    if pair["failed"] is None:  # six steps of training make no ball: a clear failure will do
        assert pair["metrics"]["pattern_right"] == 1.0
        assert pair["nearest"] in {f"ball_{i}" for i in range(NUM_SAMPLES)}
        assert (out / "generated" / f"{pair['name']}.glb").is_file()
    assert pair["prompt"] in (out / "report.html").read_text()


def test_the_export_is_safetensors_and_json_of_the_averaged_weights(runs):
    files = [path for path in (runs / "pipeline").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    checkpoint = next((runs / "run_autoencoder" / "checkpoints").glob("*.ckpt"))
    state = torch.load(checkpoint, weights_only=True)
    average = next(v["average"] for k, v in state["callbacks"].items() if "WeightAverage" in k)
    exported = load_autoencoder(runs / "pipeline" / "autoencoder").state_dict()
    for name, tensor in average.items():
        assert torch.equal(exported[name.removeprefix("autoencoder.")], tensor)
    cache = read_cache(runs / "latents")
    assert cache["inputs"]["autoencoder"] == encoder_fingerprint(
        load_autoencoder(runs / "pipeline" / "autoencoder")
    )


def test_a_pipeline_takes_its_decoder_tuned_and_its_latents_stay(runs, shards, tmp_path, capsys):
    original = runs / "pipeline" / "autoencoder"
    tuned = tmp_path / "pipeline"
    arguments = [
        "experiment=taef2/autoencoder", f"shards={shards}", f"image_autoencoder.source={original}",
        f"paths.run_dir={tmp_path}/run", f"paths.pipeline_dir={tuned}", "trainer.max_steps=2",
        "system.images_per_step=4", "logger=csv", "+trainer.enable_progress_bar=false",
    ]  # fmt: skip
    assert train.main(compose("train", arguments)) is None
    (tuned / "denoiser").symlink_to(runs / "pipeline" / "denoiser")
    before, after = (
        TextTo25D.from_pretrained(folder)(["a ball"], [1], steps=2)
        for folder in (runs / "pipeline", tuned)
    )
    assert 0 < (before - after).abs().mean() < 0.1
    encode_to(runs / "latents", shards, tmp_path)
    assert "encoded already" in capsys.readouterr().out


def test_a_pipeline_with_another_autoencoder_is_refused(runs, shards, tmp_path):
    train_stage("autoencoder", 1, tmp_path, "other", f"shards={shards}")
    (tmp_path / "pipeline" / "denoiser").symlink_to(runs / "pipeline" / "denoiser")
    with pytest.raises(UserError, match="were made by encoder"):
        TextTo25D.from_pretrained(tmp_path / "pipeline")


def test_a_denoiser_of_other_channels_is_refused_in_one_line(runs, tmp_path):
    small = [*SMALL, "denoiser.in_channels=16"]
    with pytest.raises(UserError, match="the denoiser takes 6 of 16"):
        train_stage("latent_diffusion", 1, tmp_path, "run", f"latents={runs}/latents", *small)


def test_a_folder_without_latents_is_refused_in_one_line(shards, tmp_path):
    with pytest.raises(UserError, match="latents"):
        train_stage("latent_diffusion", 1, tmp_path, "run", f"latents={shards}", *SMALL)


@pytest.mark.slow
def test_the_denoiser_beats_predict_zero_and_reads_its_captions(runs, tmp_path):
    options = [f"latents={runs}/latents", *SMALL, "trainer.log_every_n_steps=50"]
    options += ["data.hold_back=false"]  # six balls: by heart is all there is to learn
    last = read_metrics(train_stage("latent_diffusion", 400, tmp_path, "run", *options))[-1]
    assert float(last["val/loss/predict_zero_ratio"]) < 0.25
    assert float(last["val/loss/true_minus_shuffled"]) < 0.0
