"""The optimizer that systems hand to Lightning."""

import functools

import torch
from lightning.pytorch.plugins import MixedPrecision

from modules.systems.schedule import optimizer_with_schedule


def test_gradients_of_a_fused_optimizer_are_clipped_in_mixed_precision():
    parameter = torch.nn.Parameter(torch.zeros(4))
    build = functools.partial(torch.optim.AdamW, lr=0.1, fused=True)
    optimizer = optimizer_with_schedule([parameter], build, None)
    parameter.grad = torch.full((4,), 10.0)
    MixedPrecision("bf16-mixed", "cpu").clip_gradients(optimizer, 1.0)
    assert parameter.grad.norm() <= 1.0
