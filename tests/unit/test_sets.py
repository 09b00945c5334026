"""Figures of sets: known answers, second implementations, and shares that many processes hold."""

import math

import gloo_shards
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from tiny_networks import NUM_INCEPTION_FEATURES, save_clip, save_dinov2, save_inception
from torch.multiprocessing import start_processes
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from data_pipeline.contract import UserError
from modules.metrics.features import ClipNetwork, Dinov2Network, InceptionNetwork, fit_image
from modules.metrics.sets import ClipScore, Cmmd, FrechetDistance, KernelDistance, RPrecision

CPU = torch.device("cpu")


def draw(count: int, width: int = 6, *, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator) + shift


def measured(metric, real: torch.Tensor, generated: torch.Tensor):
    for part in real.split(7):
        metric.update(part, real=True)
    for part in generated.split(9):
        metric.update(part, real=False)
    return metric.compute()


def unit(features: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(features, dim=-1)


def test_equal_sets_are_at_distance_nought():
    features = draw(40)
    assert float(measured(FrechetDistance(6), features, features)) == pytest.approx(0.0, abs=1e-6)
    assert float(measured(Cmmd(6), features, features)) == pytest.approx(0.0, abs=1e-9)
    halves = measured(KernelDistance(6, subset_size=200), draw(400), draw(400, seed=1))
    assert abs(float(halves[0])) < 0.1  # unbiased: about nought, of either sign


def test_a_shift_of_gaussians_is_the_square_of_its_length():
    features = draw(50)
    shift = torch.tensor([3.0, 4.0, 0, 0, 0, 0])
    distance = measured(FrechetDistance(6), features, features + shift)
    assert float(distance) == pytest.approx(25.0, rel=1e-5)
    # N(0, 1) against N(0, 4) in each of 6 directions: 6 (2 - 1)^2
    wide = measured(FrechetDistance(6), features, 2.0 * features)
    mean, covariance = features.double().mean(0), torch.cov(features.double().T)
    assert float(wide) == pytest.approx(float(mean.square().sum() + covariance.trace()), rel=1e-5)


def test_the_frechet_distance_is_that_of_scipy_and_of_torchmetrics():
    real, generated = draw(60).double(), draw(45, seed=1, shift=0.4).double() ** 3
    first, second = np.cov(real.T.numpy()), np.cov(generated.T.numpy())
    gap = (real.mean(0) - generated.mean(0)).square().sum()
    expected = float(gap) + np.trace(first + second - 2.0 * np.real(sqrtm(first @ second)))
    found = measured(FrechetDistance(6), real, generated)
    assert float(found) == pytest.approx(expected, rel=1e-8)
    network = torch.nn.Identity()
    network.num_features = 6
    theirs = measured(FrechetInceptionDistance(feature=network), real, generated)
    assert float(found) == pytest.approx(float(theirs), rel=1e-8)


def test_covariances_that_lack_rank_give_a_distance_all_the_same():
    real, generated = draw(5, 40).double(), draw(7, 40, seed=1).double()
    first, second = np.cov(real.T.numpy()), np.cov(generated.T.numpy())
    # the eigenvalues of A B, of which all but a few are nought
    root = np.sqrt(np.abs(np.linalg.eigvals(first @ second)))
    expected = float((real.mean(0) - generated.mean(0)).square().sum())
    expected += np.trace(first + second) - 2.0 * root[root > 1e-6].sum()
    found = measured(FrechetDistance(40), real, generated)
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_the_kernel_distance_is_that_of_plain_loops_and_of_torchmetrics():
    real, generated = draw(12).double(), draw(12, seed=1, shift=0.7).double()

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a @ b / 6 + 1.0) ** 3)

    within = sum(
        kernel(s[i], s[j])
        for s in (real, generated)
        for i in range(12)
        for j in range(12)
        if i != j
    )
    between = sum(kernel(a, b) for a in real for b in generated)
    expected = within / (12 * 11) - 2.0 * between / 144
    found = measured(KernelDistance(6, subset_size=12), real, generated)
    assert float(found[0]) == pytest.approx(expected, rel=1e-9)
    theirs = KernelInceptionDistance(feature=torch.nn.Identity(), subsets=2, subset_size=12)
    assert float(found[0]) == pytest.approx(float(measured(theirs, real, generated)[0]), rel=1e-9)


def test_subsets_are_drawn_by_the_seed():
    sets = draw(30), draw(30, seed=1)
    first, again, other = (
        measured(KernelDistance(6, subset_size=10, seed=seed), *sets) for seed in (0, 0, 1)
    )
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert float(first[1]) > 0.0


def test_cmmd_is_that_of_plain_loops():
    real, generated = unit(draw(9)).double(), unit(draw(7, seed=1, shift=1.0)).double()

    def mean_kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return np.mean([math.exp(-float((x - y).square().sum()) / 200.0) for x in a for y in b])

    expected = mean_kernel(real, real) + mean_kernel(generated, generated)
    expected = 1000.0 * (expected - 2.0 * mean_kernel(real, generated))
    assert float(measured(Cmmd(6), real, generated)) == pytest.approx(expected, rel=1e-9)
    assert expected > 0.0


@pytest.mark.parametrize("metric", [FrechetDistance(6), KernelDistance(6, subset_size=10), Cmmd(6)])
def test_too_few_images_are_refused(metric):
    metric.update(draw(20), real=True)
    with pytest.raises(UserError, match="too few"):
        metric.compute()


def test_the_clip_score_is_a_hundred_times_the_positive_cosine():
    images, texts = draw(10), draw(10, seed=1)
    metric = ClipScore()
    metric.update(images, texts)
    cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in zip(images, texts, strict=True)]
    expected = np.mean([100.0 * max(cosine, 0.0) for cosine in cosines])
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-5)


def test_shuffled_prompts_lower_r_precision_to_chance():
    texts = unit(draw(50, 32))
    images = unit(texts + 0.02 * draw(50, 32, seed=1))
    rows = torch.arange(50)
    right, shuffled = RPrecision(texts), RPrecision(texts)
    right.update(images, rows)
    for shift in range(50):  # every assignment once: exactly one in fifty is right
        shuffled.update(images, (rows + shift) % 50)
    assert float(right.compute()) == 1.0
    assert float(shuffled.compute()) == pytest.approx(1 / 50)


def test_ties_count_as_guessing_among_the_tied():
    texts = torch.eye(4)[[0, 0, 1, 2]]  # the first two cannot be told apart
    metric = RPrecision(texts)
    metric.update(torch.eye(4)[[0]], torch.tensor([1]))
    assert float(metric.compute()) == 0.5
    metric.update(torch.eye(4)[[3]], torch.tensor([2]))  # equally far from all: a quarter
    assert float(metric.compute()) == pytest.approx(0.375)
    metric.update(torch.eye(4)[[1]], torch.tensor([3]))
    assert float(metric.compute()) == pytest.approx(0.25)


def test_two_processes_with_uneven_shares_measure_what_one_does(tmp_path):
    alone = gloo_shards.measure(*gloo_shards.features(), torch.arange(gloo_shards.NUM))
    splits = [[17, 7], [24, 0]]
    start_processes(gloo_shards.main, (splits, str(tmp_path)), nprocs=2, start_method="spawn")
    files = sorted(tmp_path.glob("*.txt"))
    assert len(files) == 4
    for file in files:
        found = [float(x) for x in file.read_text().split()]
        assert found == pytest.approx(alone, rel=1e-6)


def test_clip_embeds_images_and_texts_at_unit_length(tmp_path):
    network = ClipNetwork(str(save_clip(tmp_path / "clip")), CPU)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, shape, np.uint8) for shape in ((40, 60, 3), (32, 32, 3))]
    features = network.features(images)
    assert features.shape == (2, network.num_features)
    assert torch.allclose(features.norm(dim=-1), torch.ones(2))
    alone = network.features(images[1:])
    assert torch.allclose(features[1:], alone, atol=1e-6)
    texts = network.text_features(["a red chair", "blue"])
    assert torch.allclose(texts[1:], network.text_features(["blue"]), atol=1e-6)  # padding is inert
    assert not torch.allclose(texts[0], texts[1], atol=1e-3)
    assert network.is_cut("word " * 30)
    assert not network.is_cut("blue")
    assert network.text_features(["word " * 30]).shape == (1, 8)


def test_dinov2_gives_the_class_token_and_inception_takes_images_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(InceptionNetwork, "num_features", NUM_INCEPTION_FEATURES)
    images = [np.full((20, 30, 3), 255, np.uint8), np.zeros((16, 16, 3), np.uint8)]
    dinov2 = Dinov2Network(str(save_dinov2(tmp_path / "dinov2")), CPU)
    assert dinov2.features(images).shape == (2, dinov2.num_features)
    inception = InceptionNetwork(str(save_inception(tmp_path / "inception.pt")), CPU)
    features = inception.features([*images, images[0]])
    assert features.shape == (3, NUM_INCEPTION_FEATURES)
    assert torch.equal(features[0], features[2])
    assert not torch.equal(features[0], features[1])
    monkeypatch.undo()
    with pytest.raises(UserError, match="shape"):
        InceptionNetwork(str(tmp_path / "inception.pt"), CPU)


def test_an_image_is_cropped_to_its_central_square_and_resized_as_pillow_does():
    image = np.random.default_rng(0).integers(0, 255, (40, 64, 3), np.uint8)
    square = Image.fromarray(image[:, 12:52]).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(fit_image(image, 16, crop=True), np.asarray(square))
    assert np.array_equal(fit_image(image[:, 12:52], 40, crop=True), image[:, 12:52])
    whole = Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(fit_image(image, 16, crop=False), np.asarray(whole))


@pytest.mark.parametrize("network", [ClipNetwork, Dinov2Network, InceptionNetwork])
def test_weights_that_are_not_there_are_told_with_what_to_give(network, tmp_path):
    for source in (tmp_path / "nothing", tmp_path):  # an empty folder, too
        with pytest.raises(UserError, match="give"):
            network(str(source), CPU)
