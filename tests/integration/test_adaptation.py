"""benchmarks/adaptation*.py as a whole at the smallest size, and that its comparison is fair."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from hydra.utils import instantiate
from sphere_shards import sphere_members

import encode
from data_pipeline.command_line import compose
from data_pipeline.shards.writer import ShardWriter

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
LORAS = ("mixture of LoRA", "shared LoRA", "per-modality LoRA")
SMALLEST = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 4}


@pytest.fixture(scope="module", autouse=True)
def importable():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Eight balls, two of each caption, through the tiny autoencoder and encode.py."""
    folder = tmp_path_factory.mktemp("adaptation")
    with ShardWriter(folder / "shards", "render", 4) as writer:
        for i in range(8):
            size = "small" if i < 4 else "large"
            colour = (*COLOURS, "red")[i % 4]
            caption = (f"a {size} {colour} ball",)
            members = sphere_members(f"ball_{i}", COLOURS[colour], 32, 0.3 + 0.02 * i, caption)
            writer.add(f"ball_{i}", members)
        writer.finish({"kind": "samples", "config_hash": "0" * 16})
    torch.manual_seed(0)
    config = compose("train", ["experiment=tiny/autoencoder", "shards=x"]).image_autoencoder
    instantiate(config, _convert_="all")().save_pretrained(folder / "autoencoder")
    names = {"shards": "shards", "autoencoder": "autoencoder", "out": "latents"}
    encode.main(compose("encode", [f"{k}={folder / v}" for k, v in names.items()] + ["packing=2"]))
    out = folder / "data.npz.xz"
    sizes = ["--validation", "2", "--adaptation", "3"]
    importlib.import_module("adaptation_data").main([str(folder / "latents"), str(out), *sizes])
    return out


@pytest.fixture(scope="module")
def stand_in(packed, tmp_path_factory):
    """A stand-in of the size that is measured, with random weights instead of pretrained ones."""
    arms = importlib.import_module("adaptation_arms")
    folder = tmp_path_factory.mktemp("stand_in")
    data = arms.Data.load(packed, "cpu")
    torch.manual_seed(5)
    denoiser = arms.JointDenoiser.from_scratch(num_views=1, **arms.SIZES["tiny"])
    torch.nn.init.normal_(denoiser.backbone.transformer.proj_out.weight, std=0.1)
    arms.save_stand_in(folder, denoiser.backbone, arms.build_text_encoder(data))
    return folder


def make_inputs(channels=128, grid=2):
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 3, 6, channels, grid, grid, generator=generator)
    times = torch.tensor([[0.3, 0.3, 0.3], [0.7, 0.7, 0.7]])
    return latents, times, torch.randn(2, 16, 192, generator=generator)


def test_the_tiny_size_is_the_projects_on_latents_packed_as_flux2_packs():
    arms = importlib.import_module("adaptation_arms")
    words = ["experiment=tiny/latent_diffusion", "latents=x", "denoiser.in_channels=128"]
    config = instantiate(compose("train", words).denoiser, _convert_="all").keywords
    ours = {"num_views": 6, "text_timestep": "largest", "vision_width": None}
    assert config == ours | arms.SIZES["tiny"]


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_the_ways_of_lora_train_equally_many_parameters(size, packed, tmp_path):
    arms = importlib.import_module("adaptation_arms")
    denoiser = arms.JointDenoiser.from_scratch(num_views=1, **arms.SIZES[size])
    data = arms.Data.load(packed, "cpu")
    arms.save_stand_in(tmp_path, denoiser.backbone, arms.build_text_encoder(data))
    built = {arm: arms.build_arm(arm, size, tmp_path, seed=0) for arm in arms.ARMS}
    counts = {arm: arms.count_trained(denoiser) for arm, denoiser in built.items()}
    assert len({counts[arm] for arm in LORAS}) == 1
    whole = sum(p.numel() for p in built["from scratch"].parameters())
    assert counts["full fine-tuning"] == counts["from scratch"] == whole
    assert counts[LORAS[0]] < 0.3 * whole
    for arm in LORAS:  # each of what it is called, and the embeddings besides
        names = {n for n, p in built[arm].named_parameters() if p.requires_grad}
        kinds = {name.rsplit(".", 1)[-1].rsplit("_", 1)[0] for name in names}
        expected = {"mixture of LoRA": {"shared", "modality"}, "shared LoRA": {"shared"}}
        embeddings = {"modality", "view"} & {name.removesuffix("_embedding") for name in names}
        assert embeddings == {"modality", "view"}
        assert kinds == expected.get(arm, {"modality"}) | {"modality", "view"}


def test_every_pretrained_arm_starts_as_the_stand_in(stand_in):
    arms = importlib.import_module("adaptation_arms")
    latents, times, text = make_inputs()
    backbone = arms.Flux2Backbone.from_pretrained(str(stand_in), dtype="float32")
    stock = Flux2Transformer2DModel.from_pretrained(stand_in / "transformer")
    with torch.no_grad():
        one = arms.SingleViews(backbone)(latents[:, :1, :1], times[:, :1], text)
        ids = torch.cartesian_prod(*[torch.arange(n) for n in (1, 2, 2, 1)])
        words = torch.cartesian_prod(*[torch.arange(n) for n in (1, 1, 1, 16)])
        forward = stock(
            hidden_states=latents[:, 0, 0].flatten(2).mT, encoder_hidden_states=text,
            timestep=times[:, 0], img_ids=ids, txt_ids=words, guidance=None, return_dict=False,
        )[0]  # fmt: skip
        assert torch.equal(one[:, 0, 0].flatten(2).mT, forward)
        expected = backbone.run(
            latents, times, text, text_timesteps=times[:, 0], pooled=None, embedding=None,
            slots=torch.arange(6)[None], references=None, reference_slots=torch.arange(0),
        )  # fmt: skip
        for arm in arms.ARMS:
            output = arms.build_arm(arm, "tiny", stand_in, seed=1)(latents, times, text)
            assert torch.equal(output, expected) == (arm != "from scratch"), arm
    assert output.abs().max() == 0.0  # from scratch


def test_all_arms_see_the_same_draws_and_the_average_is_what_is_evaluated(packed, stand_in):
    training = importlib.import_module("adaptation_training")
    arms = importlib.import_module("adaptation_arms")
    data = arms.Data.load(packed, "cpu")
    job = {"lr": 1e-2, "seed": 1, "rule": "largest", "mix": "mixed"}
    built = [
        training.ArmTraining({**job, "arm": arm}, data, "tiny", stand_in, graphs=True)
        for arm in ("shared LoRA", "from scratch")
    ]
    drawn = [each._draw() for each in built]
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))
    trainer, before = built[1].trainer, built[1].evaluate()
    assert built[1].evaluate() == before
    for _ in range(2):
        built[1].step()
    last = [p.detach().clone() for p in trainer.parameters]
    after = built[1].evaluate()
    assert after["joint"]["rgb"] < before["joint"]["rgb"]
    assert all(torch.equal(a, p) for a, p in zip(last, trainer.parameters, strict=True))
    assert set(after) == {"joint", "texture", "geometry", "independent"}
    assert set(after["texture"]) == {"rgb"}
    assert set(after["geometry"]) == {"normal", "coord"}


def test_validation_asks_for_captions_that_no_training_showed():
    order = importlib.import_module("adaptation_data").order
    captions = [f"caption {i % 7}" for i in range(40)]
    kept = order(captions, 3, 10)
    held_back = {captions[i] for i in kept[:3]}
    assert len(set(kept)) == len(kept)
    assert not held_back & {captions[i] for i in kept[3:]}
    assert len(kept) == 3 + sum(caption not in held_back for caption in captions)
    with pytest.raises(SystemExit, match="too few"):
        order(captions, 3, 38)


def test_the_whole_benchmark_and_its_report(packed, tmp_path, monkeypatch, capsys):
    arms = importlib.import_module("adaptation_arms")
    main = importlib.import_module("adaptation").main
    out = tmp_path / "out"
    monkeypatch.setitem(arms.SIZES, "small", {**arms.SIZES["small"], **SMALLEST})
    monkeypatch.setitem(arms.BATCHES, "small", 2)
    training = importlib.import_module("adaptation_training")
    monkeypatch.setattr(training, "NUM_LEVELS", 1)  # most of the time goes into evaluations
    for arm in arms.ARMS:
        monkeypatch.setitem(arms.LEARNING_RATES, arm, (1e-3,))
    words = ["--size", "small", "--workers", "0", "--max-steps", "2", "--seeds", "1"]
    main([str(packed), str(out), "--device", "cpu", "--seconds", "600", *words])
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert not [row for row in rows if "failed" in row]
    evaluated = [row for row in rows if "loss" in row]
    assert len(evaluated) == 2 * (5 + 5 + 6)  # at the first step and at the last
    assert {row["step"] for row in evaluated} == {0, 2}
    at_start = {
        row["arm"]: json.dumps(row["loss"])
        for row in evaluated
        if row["round"] == "arms" and row["step"] == 0
    }
    assert len({at_start[arm] for arm in (*LORAS, "full fine-tuning")}) == 1
    assert at_start["from scratch"] != at_start["full fine-tuning"]
    assert len([row for row in rows if row["round"] == "pretraining"]) == 2
    assert rows[-1] == {"round": "end"}
    with (out / "rows.jsonl").open("a") as file:
        file.write('{"round": "arms", "ar')  # cut off
    capsys.readouterr()
    report = importlib.import_module("adaptation_report").main
    report([str(out), "--plot", str(tmp_path / "media/plot.png")])
    told = capsys.readouterr().out
    assert all(told.count(f"| {arm} |") == 2 for arm in arms.ARMS)
    assert told.count("| independent | mean |") == 1
    assert (tmp_path / "media/plot.png").stat().st_size > 10_000
    with pytest.raises(SystemExit):  # results of two runs do not mix
        main([str(packed), str(out), "--device", "cpu"])


def make_row(arm, seed, step, rgb, normal=1.0, coord=1.0):
    losses = {"joint": {"rgb": rgb, "normal": normal, "coord": coord}}
    return {
        "round": "arms", "arm": arm, "lr": 3e-3, "seed": seed, "trained": 1234, "step": step,
        "loss": losses,
    }  # fmt: skip


def test_arms_are_compared_where_all_of_them_came():
    report = importlib.import_module("adaptation_report")
    first, second = "mixture of LoRA", "from scratch"
    rows = [make_row(first, seed, 0, 4.0) for seed in (1, 2)]
    rows += [make_row(first, 1, 100, 1.0), make_row(first, 2, 100, 1.6)]
    rows += [make_row(first, 1, 200, 2.2), make_row(first, 2, 200, 2.2)]
    rows += [make_row(first, 1, 300, 0.1)]  # the other seed was cut off
    rows += [make_row(second, 1, step, rgb) for step, rgb in ((0, 4.0), (100, 2.5), (200, 1.9))]
    table = report.arms_table(rows, {first: 0.02, second: 0.01})
    head, _, mixture, scratch = ([c.strip() for c in row.split("|")] for row in table.split("\n"))
    mixture, scratch = (dict(zip(head, row, strict=True)) for row in (mixture, scratch))
    assert mixture["ms a step"] == "20.0"
    assert mixture["trained"] == "1,234"
    assert mixture["loss, step 100"] == "1.1000 ± 0.1000"
    assert mixture["step 200"] == "1.4000 ± 0.0000"
    assert mixture["rgb, step 200"] == "2.2000"
    assert mixture["lowest"] == "1.1000 ± 0.1000 at 100"
    assert mixture["2 s"] == "1.1000"  # 100 of its steps, 200 of the other's
    assert scratch["2 s"] == scratch["step 200"].split()[0] == "1.3000"


def test_the_best_rate_is_compared_at_a_step_that_all_rates_reached():
    benchmark = importlib.import_module("adaptation")

    def row(lr, step, loss):
        losses = {"joint": {"rgb": loss, "normal": loss, "coord": loss}}
        return {"round": "rates", "arm": "mixture of LoRA", "lr": lr, "step": step, "loss": losses}

    rows = [row(1e-3, 100, 0.5), row(3e-3, 100, 0.4), row(1e-2, 100, float("nan"))]
    rows += [row(1e-3, 200, 0.1)]
    assert benchmark.best_rate(rows, "mixture of LoRA") == 3e-3
    assert benchmark.best_rate([], "mixture of LoRA") == 3e-3
