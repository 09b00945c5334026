"""On a CUDA device: a step needs the memory that its plan foretold, and attention is flash."""

import importlib
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from modules.reporting.plan import Batch

pytestmark = pytest.mark.gpu
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("name", ["flux2_klein", "sd35m"])
def test_a_step_needs_the_planned_memory_within_a_tenth(name, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    models = importlib.import_module("denoiser_models")
    width = {"num_attention_heads": 8, "attention_head_dim": 128, "axes_dims_rope": [32] * 4}
    if name == "sd35m":
        del width["axes_dims_rope"]
        width["caption_projection_dim"] = 8 * 128
    monkeypatch.setitem(models.SMALL, name, models.SMALL[name] | width)
    monkeypatch.setitem(models.BATCHES, "small", Batch(size=1, grid=16, text_tokens=128))
    plan = models.plan_model(name, "small", torch.bfloat16, checkpointed=True)
    planned = plan.memory(0, 1).total
    before = torch.cuda.memory_allocated()
    model = models.Model(name, "small", "cuda", torch.bfloat16)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # any other kernel would be an error
        for _ in range(2):
            model.train_step()
        torch.cuda.reset_peak_memory_stats()
        model.train_step()
    measured = torch.cuda.max_memory_allocated() - before
    assert measured == pytest.approx(planned, rel=0.1)
