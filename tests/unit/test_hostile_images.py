"""A fast part of benchmarks/hostile_images.py: every kind of bad images ends well."""

import importlib
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic import ORTHO6, observe, sphere

from data_pipeline.contract import UserError
from modules.pipelines.reconstruction import Reconstructor

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
hostile_images = importlib.import_module("hostile_images")

REFUSED = {
    "empty": "no surface",
    "all_nan": "NaN or infinite",
    "some_nan": "NaN or infinite",
    "huge_values": "the images reach",
}


@pytest.mark.parametrize(
    ("kind", "seed", "case"),
    [each for each in hostile_images.make_cases(24, (16,)) if each[0] != "wrong_shape"],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_images_give_a_sound_mesh_or_a_clear_error(tmp_path, kind, seed, case):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = hostile_images.rebuild(
            case, tmp_path / "a.glb", Reconstructor.classical(), grid=16, texture_px=32
        )
    if kind in REFUSED:
        assert found["outcome"] == "error"
    assert found["outcome"] in ("mesh", "error"), found["said"]
    if found["outcome"] == "error":
        assert REFUSED.get(kind, "the images") in found["said"]
    else:
        assert found["watertight"] == found["manifold"] == 1.0
    if kind in ("honest", "one_view_missing", "torn_halves", "noisy"):
        assert found["outcome"] == "mesh"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda images, hit: (images, hit, ORTHO6[:5]), "do not fit 5 cameras"),
        (lambda images, hit: (images[:2], hit, ORTHO6), "do not fit"),
        (lambda images, hit: (images[:, :0], None, ()), "do not fit 0 cameras"),
    ],
)
def test_images_that_do_not_fit_their_cameras_are_refused(change, words):
    images, hit = observe(sphere(), 16)
    images, hit, cameras = change(torch.from_numpy(images), torch.from_numpy(hit))
    with pytest.raises(UserError, match=words):
        Reconstructor.classical().lift(images, cameras, hit)


def test_a_foam_is_refused_before_it_takes_minutes(monkeypatch):
    monkeypatch.setattr("modules.pipelines.reconstruction.MAX_FACES_PER_SQUARE", 2)
    images, _ = observe(sphere(), 16)
    with pytest.raises(UserError, match="contradict each other everywhere"):
        Reconstructor.classical()(torch.from_numpy(images), ORTHO6, None, grid=16, texture_px=16)


def test_a_case_that_takes_too_long_or_dies_or_eats_memory_is_told_apart(tmp_path):
    """The limits of the benchmark itself: else its table could not show what it looks for."""
    case = next(hostile_images.make_cases(1, (16,)))[2]

    class Late(Reconstructor):
        def __call__(self, *_, **__):
            time.sleep(60)

    class Greedy(Reconstructor):
        def __call__(self, *_, **__):
            return np.ones(2**30)

    class Dead(Reconstructor):
        def __call__(self, *_, **__):
            os._exit(3)

    for method, outcome in ((Late(), "hang"), (Greedy(), "memory"), (Dead(), "crash")):
        found = hostile_images.in_child(2.0, 512.0, case, tmp_path / "a.glb", method)
        assert found["outcome"] == outcome
