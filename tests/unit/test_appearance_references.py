"""Figures of images against a second, slow or independent implementation of the same formula."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio
from torch.nn import functional

from data_pipeline.contract import UserError
from modules.metrics.appearance import image_figures, ssim_map
from modules.metrics.lpips import Lpips, load_lpips, lpips_figures

WEIGHTS = Path(__file__).resolve().parents[3] / "shared/weights/lpips_v01_alexnet.safetensors"


def slow_ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Equation 13 of Wang et al. (2004), K1 = .01, K2 = .03, one channel."""

    def blur(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, truncate=3.5)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    similarity = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
    return similarity / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))


def test_ssim_equals_its_formula_and_is_averaged_over_the_mask():
    generator = np.random.default_rng(0)
    images = generator.random((2, 2, 24, 24, 3))
    hits = generator.random((2, 2, 24, 24)) < 0.02
    assert ssim_map(images[0, 0], images[1, 0]) == pytest.approx(
        np.mean([slow_ssim(images[0, 0, ..., c], images[1, 0, ..., c]) for c in range(3)], axis=0),
        abs=1e-9,
    )
    shown = [np.where(hits[..., None], images, grey) for grey in (0.0, 1.0)]
    expected = np.mean(
        [
            [
                np.mean([slow_ssim(a[..., c], b[..., c]) for c in range(3)], axis=0)
                for a, b in zip(*each, strict=True)
            ]
            for each in shown
        ],
        axis=0,
    )
    figures = image_figures(images[0], hits[0], images[1], hits[1])
    assert figures["ssim_unmasked"] == pytest.approx(expected.mean(), abs=1e-9)
    mask = np.zeros_like(hits[0])
    for view, row, column in np.argwhere(hits[0] | hits[1]):
        mask[view, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = True
    assert figures["ssim_masked"] == pytest.approx(expected[mask].mean(), abs=1e-9)
    same = image_figures(images[0], hits[0], images[0], hits[0])
    assert same["ssim_masked"] == same["ssim_unmasked"] == pytest.approx(1.0)


def test_psnr_equals_scikit_images():
    generator = np.random.default_rng(1)
    images = generator.random((2, 3, 16, 16, 3))
    hits = np.ones((3, 16, 16), dtype=bool)
    figures = image_figures(images[0], hits, images[1], hits)
    expected = peak_signal_noise_ratio(images[1], images[0], data_range=1.0)
    assert figures["psnr_masked"] == figures["psnr_unmasked"] == pytest.approx(expected, abs=1e-9)
    assert figures["mask_iou"] == 1.0


def random_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3)}
    shapes |= {8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    weights = {}
    for k, (index, shape) in enumerate(shapes.items()):
        scale = np.sqrt(2.0 / np.prod(shape[1:]))
        weights[f"features.{index}.weight"] = torch.randn(shape, generator=generator) * scale
        weights[f"features.{index}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
        weights[f"lin{k}.model.1.weight"] = torch.rand(1, shape[0], 1, 1, generator=generator)
    return weights


def plain_lpips(w: dict[str, torch.Tensor], a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
    """The definition, written out: one map for each of the five layers."""
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    x, maps = (torch.stack([a, b]) * 2 - 1 - shift) / scale, []
    steps = (
        (0, 4, 2, False),
        (3, 1, 2, True),
        (6, 1, 1, True),
        (8, 1, 1, False),
        (10, 1, 1, False),
    )
    for k, (index, stride, padding, pooled) in enumerate(steps):
        if pooled:
            x = functional.max_pool2d(x, 3, 2)
        weight, bias = w[f"features.{index}.weight"], w[f"features.{index}.bias"]
        x = functional.conv2d(x, weight, bias, stride, padding).clamp(min=0)
        unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
        maps.append((w[f"lin{k}.model.1.weight"][0] * (unit[0] - unit[1]) ** 2).sum(0))
    return maps


@pytest.mark.parametrize("real", [False, True])
def test_lpips_equals_its_definition_written_out(real: bool):
    if real and not WEIGHTS.is_file():
        pytest.skip("the LPIPS weights are not beside this checkout")
    weights = load_file(WEIGHTS) if real else random_weights()
    network = Lpips(weights)
    images = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    maps = [plain_lpips(weights, a, b) for a, b in zip(*images, strict=True)]
    expected = torch.stack([torch.stack([m.mean() for m in layers]).sum() for layers in maps])
    torch.testing.assert_close(network(*images), expected, rtol=1e-4, atol=1e-5)
    assert network(images[0], images[0]).abs().max() == 0.0
    mask = np.zeros((2, 64, 64), dtype=bool)
    mask[0, :10], mask[1, 20:25, 7] = True, True
    enlarged = [
        sum(functional.interpolate(m[None, None], (64, 64), mode="bilinear")[0, 0] for m in layers)
        for layers in maps
    ]
    arrays = [image.permute(0, 2, 3, 1).double().numpy() for image in images]
    figures = lpips_figures(network, arrays[0], arrays[1], mask)
    assert figures["lpips_unmasked"] == pytest.approx(float(expected.mean()), rel=1e-4)
    masked = np.stack([np.asarray(x) for x in enlarged])[mask].mean()
    assert figures["lpips_masked"] == pytest.approx(float(masked), rel=1e-4)


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="the LPIPS weights are not beside this checkout")
def test_lpips_tells_a_blurred_image_from_a_brighter_one():
    """What LPIPS is for: of two images that are equally far in PSNR, a blurred one looks worse."""
    image = 0.5 * np.random.default_rng(0).random((64, 64, 3))
    image = np.kron(image[::8, ::8], np.ones((8, 8, 1)))
    blurred = gaussian_filter(image, (3.0, 3.0, 0.0))
    error = np.sqrt(((blurred - image) ** 2).mean())
    brighter = image + error
    pairs = [torch.from_numpy(x).permute(2, 0, 1)[None].float() for x in (image, blurred, brighter)]
    network = load_lpips(str(WEIGHTS))
    assert network(pairs[0], pairs[1]) > 2.0 * network(pairs[0], pairs[2])


def test_wrong_lpips_weights_are_told(tmp_path: Path):
    with pytest.raises(UserError, match="does not exist"):
        load_lpips(str(tmp_path / "missing.safetensors"))
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="holds no LPIPS"):
        load_lpips(str(tmp_path / "broken.safetensors"))
