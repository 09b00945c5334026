"""The optimizer that systems hand to Lightning."""

import functools

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from modules.systems import schedule
from modules.systems.schedule import optimizer_with_schedule, warmup_hold_decay


def test_gradients_of_a_fused_optimizer_are_clipped_in_mixed_precision():
    parameter = torch.nn.Parameter(torch.zeros(4))
    build = functools.partial(torch.optim.AdamW, lr=0.1, fused=True)
    optimizer = optimizer_with_schedule([parameter], build, None)
    parameter.grad = torch.full((4,), 10.0)
    MixedPrecision("bf16-mixed", "cpu").clip_gradients(optimizer, 1.0)
    assert parameter.grad.norm() <= 1.0


def test_a_rate_falls_by_the_clock_where_time_ends_the_run(monkeypatch: pytest.MonkeyPatch):
    options = {"total_steps": 1000, "warmup_steps": 1, "decay_share": 0.5, "final": 0.1}
    for seconds, expected in ((0.0, 1.0), (50.0, 1.0), (75.0, 0.55), (100.0, 0.1), (200.0, 0.1)):
        monkeypatch.setattr(schedule.time, "monotonic", lambda s=seconds: schedule.STARTED + s)
        factor = warmup_hold_decay(10, **options, total_seconds=100.0)
        assert factor == pytest.approx(expected), seconds
        assert warmup_hold_decay(1000, **options, total_seconds=100.0) == pytest.approx(0.1)
