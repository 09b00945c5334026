"""Cycles on a GPU: the device asked for is the device used, and it draws what the CPU draws."""

import dataclasses

import numpy as np
import pytest
from difficult_assets import scene
from rendering import render

from data_pipeline.contract import RenderSpec

pytestmark = [pytest.mark.gpu, pytest.mark.blender]

SPEC = RenderSpec(
    resolution_px=128, samples=16, lighting="studio", surface_points=64, sdf_points=64
)


@pytest.mark.parametrize("device", ["cuda", "optix"])
def test_a_gpu_draws_what_the_cpu_draws(device, tmp_path):
    glb = scene().write(tmp_path / "boxes.glb")
    cpu = render({"a": glb}, tmp_path / "cpu", SPEC)
    gpu = render({"a": glb}, tmp_path / "gpu", dataclasses.replace(SPEC, device=device))
    assert gpu.failures == {}
    assert gpu.meta("a")["device"] == device
    assert gpu.meta("a")["config_hash"] != cpu.meta("a")["config_hash"]
    hit, cpu_hit = gpu.views("a", "hit") > 0, cpu.views("a", "hit") > 0
    assert (hit != cpu_hit).mean() < 2e-3
    both = hit & cpu_hit
    for name, tolerance in (("coord", 1e-3), ("normal", 1e-3)):
        error = np.abs(gpu.views("a", name) - cpu.views("a", name))[both]
        assert np.quantile(error, 0.99) < tolerance
    difference = np.abs(gpu.over_white("a") - cpu.over_white("a"))[both]
    assert difference.mean() < 2.0


def test_auto_takes_the_gpu(tmp_path):
    glb = scene().write(tmp_path / "boxes.glb")
    done = render({"a": glb}, tmp_path / "out", dataclasses.replace(SPEC, device="auto"))
    assert done.meta("a")["device"] in ("optix", "cuda", "hip")
