"""The compositional benchmark: what it refuses to measure, and what a failure keeps."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from data_pipeline.contract import UserError
from modules.metrics.composition import SIDE_PX
from modules.reporting.attributed_samples import Rendered, check_training_set, refuse_repeated
from modules.reporting.evaluation import Case
from modules.reporting.text_cases import TextBenchmark, TextOptions

TRAINING = [("chair", "dots", "red"), ("table", "plain", "blue"), ("", "", "")]


def test_combinations_that_training_never_showed_are_measured():
    refuse_repeated([("chair", "dots", "blue"), ("table", "dots", "red")], TRAINING)


def test_a_combination_that_training_shows_would_measure_memory():
    with pytest.raises(UserError, match=r"1 of 2 held-back captions name what training samples"):
        refuse_repeated([("chair", "dots", "red"), ("table", "dots", "red")], TRAINING)


def test_samples_without_attributes_are_no_repetition():
    refuse_repeated([("", "", "")], TRAINING)


def test_a_pipeline_of_other_shards_is_refused_and_one_that_does_not_say_is_told(tmp_path):
    record = tmp_path / "denoiser.json"
    assert "on trust" in check_training_set(tmp_path, "aa")[0]
    record.write_text('{"trained_on": null}')
    assert "does not say" in check_training_set(tmp_path, "aa")[0]
    record.write_text('{"trained_on": "aa"}')
    assert "was trained on these shards" in check_training_set(tmp_path, "aa")[0]
    with pytest.raises(UserError, match="trained on other samples"):
        check_training_set(tmp_path, "bb")


OPTIONS = TextOptions(
    steps=1, guidance=1.0, grid=32, texture_px=64, seed=0, num_val=1, classifier_steps=1
)


class Classifier:
    """Names the category of bright images alone."""

    def name(self, images: torch.Tensor) -> list[dict[str, str]]:
        bright = bool(images.mean() > 0.0)
        return [{"category": "chair" if bright else "table", "pattern": "plain"}]


def test_a_mesh_that_fails_keeps_what_its_images_showed_what_they_cost_and_their_picture(tmp_path):
    asked = {"category": "chair", "colour": "red", "pattern": "dots", "pattern_colour": ""}
    renders = torch.zeros(1, 6, 6, SIDE_PX, SIDE_PX)

    def refuse(images: torch.Tensor, *args: object, **settings: object) -> None:
        raise UserError("the images show no surface")

    benchmark = TextBenchmark.__new__(TextBenchmark)
    benchmark.palette, benchmark.options, benchmark.out = {"red": (255, 0, 0)}, OPTIONS, tmp_path
    benchmark.held_back = Rendered(["a"], ["a red chair"], [asked], renders, renders[:0])
    benchmark.training = benchmark.held_back
    benchmark.generate = lambda *args: torch.full((1, 3, 6, 3, 64, 64), 0.9)
    benchmark.reconstruct, benchmark.classifier = refuse, Classifier()
    true = {"images": torch.zeros(3, 6, 3, 64, 64), "hit": torch.ones(6, 64, 64, dtype=torch.bool)}
    benchmark._true_sample = lambda i: true
    case = Case("a", "", lambda: (0, tmp_path / "generated/a.glb"))
    pair = benchmark.score(case, OPTIONS, tmp_path, "pictures/a.png")
    assert pair["failed"] == "the images show no surface"
    assert pair["metrics"]["image_category_right"] == 1.0
    assert pair["metrics"]["image_pattern_right"] == 0.0
    assert pair["metrics"]["all_right"] == pair["metrics"]["category_right"] == 0.0
    assert pair["metrics"]["seconds_generate"] >= 0.0
    assert "seconds_reconstruct" not in pair["metrics"]
    assert Path(tmp_path / pair["picture"]).is_file()


def test_how_results_are_made_may_differ_how_they_are_measured_may_not():
    assert OPTIONS.method().keys() == {"steps", "guidance", "grid", "texture_px", "seed"}
    assert {"num_val", "classifier_steps", "cameras", "background"} <= OPTIONS.protocol().keys()
    with pytest.raises(UserError, match="seed=-1"):
        TextOptions(**OPTIONS.method() | {"seed": -1, "num_val": 1, "classifier_steps": 1})
    with pytest.raises(UserError, match="guidance=inf"):
        dataclasses.replace(OPTIONS, guidance=math.inf)
