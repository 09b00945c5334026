"""What a result shows, measured: on images whose content is known."""

import numpy as np
import pytest
import torch

from data_pipeline.contract import UserError
from modules.metrics.composition import (
    NOTHING,
    AttributeClassifier,
    confusion,
    dominant_colour,
    nearest_images,
    train_classifier,
)

PALETTE = {"red": (200, 28, 36), "white": (236, 236, 236), "green": (38, 140, 50)}
LABELS = {"category": ("disc", "square"), "pattern": ("plain", "stripes")}


def drawn(category: str, pattern: str, generator: torch.Generator) -> torch.Tensor:
    """Return a view (1 6 64 64) of a flat disc or square, plain or striped, of any colour."""
    grid = torch.arange(64) - 31.5 + torch.randint(-5, 6, (1,), generator=generator)
    size = int(torch.randint(14, 22, (1,), generator=generator))
    x, y = grid[None, :].expand(64, 64), grid[:, None].expand(64, 64)
    inside = (x**2 + y**2 < size**2) if category == "disc" else (x.abs() < size) & (y.abs() < size)
    colour = torch.rand(3, 1, 1, generator=generator) * 1.2 - 1.0
    stripes = (y.long() // 4 % 2 == 0) if pattern == "stripes" else torch.zeros_like(inside)
    rgb = torch.where(stripes, torch.ones(3, 64, 64), colour.expand(3, 64, 64))
    rgb = torch.where(inside, rgb, torch.ones(3, 64, 64))
    normal = torch.zeros(3, 64, 64)
    normal[2, inside] = 1.0
    return torch.cat([rgb, normal])[None]


def drawn_set(count: int, seed: int) -> tuple[torch.Tensor, list[dict[str, str]]]:
    generator = torch.Generator().manual_seed(seed)
    attributes = [
        {"category": LABELS["category"][i % 2], "pattern": LABELS["pattern"][i // 2 % 2]}
        for i in range(count)
    ]
    images = [drawn(each["category"], each["pattern"], generator) for each in attributes]
    return torch.stack(images), attributes


def test_the_colour_of_most_of_the_foreground_is_named():
    rgb, hit = np.ones((2, 8, 8, 3)), np.zeros((2, 8, 8), dtype=bool)
    hit[:, 2:6, 2:6] = True
    rgb[:, 2:6, 2:6] = np.array([190, 40, 40]) / 255.0  # a red that is not the palette's own
    rgb[:, 2:4, 2:4] = np.array([30, 150, 60]) / 255.0
    assert dominant_colour(rgb, hit, PALETTE) == "red"
    assert dominant_colour(rgb, ~hit, PALETTE) == "white"  # the background, if it counted
    assert dominant_colour(rgb, np.zeros_like(hit), PALETTE) == NOTHING


def test_the_colour_of_a_pattern_does_not_compete():
    rgb, hit = np.ones((1, 8, 8, 3)), np.ones((1, 8, 8), dtype=bool)
    rgb[:, :3] = np.array(PALETTE["green"]) / 255.0  # three rows of eight: white has the most
    assert dominant_colour(rgb, hit, PALETTE) == "white"
    assert dominant_colour(rgb, hit, PALETTE, ignore="white") == "green"
    assert dominant_colour(np.ones((1, 8, 8, 3)), hit, PALETTE, ignore="white") == NOTHING


@pytest.fixture(scope="module")
def classifier() -> AttributeClassifier:
    images, attributes = drawn_set(48, seed=0)
    return train_classifier(images, attributes, LABELS, steps=60, batch=8)


def test_a_classifier_names_shapes_and_patterns_that_it_never_saw(classifier):
    images, attributes = drawn_set(24, seed=1)
    named = classifier.name(images)
    for key in LABELS:
        right = sum(one[key] == two[key] for one, two in zip(named, attributes, strict=True))
        assert right >= 22, key


def test_a_saved_classifier_says_the_same(classifier, tmp_path):
    images, _ = drawn_set(4, seed=2)
    classifier.save(tmp_path / "x" / "classifier.safetensors")
    loaded = AttributeClassifier.load(tmp_path / "x" / "classifier.safetensors")
    assert loaded.name(images) == classifier.name(images)
    (tmp_path / "torn").write_bytes(b"torn")
    with pytest.raises(UserError, match="delete it"):
        AttributeClassifier.load(tmp_path / "torn")


def test_the_nearest_training_asset_is_found_and_a_copy_is_at_no_distance():
    images, _ = drawn_set(8, seed=3)
    found = nearest_images(images[[5, 2]], images)
    assert [each.index for each in found] == [5, 2]
    assert all(each.distance < 1e-3 for each in found)
    [far] = nearest_images(-images[:1], images)
    assert far.distance > 0.3


def test_a_confusion_matrix_counts_rows_of_what_is_true():
    table = confusion([("mug", "mug"), ("mug", "cup"), ("chair", "chair"), ("mug", "mug")])
    assert table == {"mug": {"mug": 2, "cup": 1}, "chair": {"chair": 1}}
