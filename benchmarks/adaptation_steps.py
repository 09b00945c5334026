"""Optimizer steps, averaged weights, CUDA graphs and draws of benchmarks/adaptation.py."""

import numpy as np
import torch
from torch import Tensor, nn

WARMUP_STEPS = 30
LARGEST_DECAY = 0.99


class Trainer:
    """AdamW with a short rise of the learning rate, clipped gradients, and averaged weights.

    Args:
        parameters: to train.
        lr: learning rate after the rise.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        self.parameters, self.lr, self.step = parameters, lr, 0
        self.optimizer = torch.optim.AdamW(
            parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.average = [p.detach().clone() for p in parameters]

    def update(self, loss: Tensor, factor: float = 1.0) -> None:
        """Make one step; `factor` scales the learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor * min(1.0, (self.step + 1) / WARMUP_STEPS)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(LARGEST_DECAY, self.step / (9 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1.0 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and averages."""
        for parameter, average in zip(self.parameters, self.average, strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)


def graphed(module: nn.Module, batch: tuple[Tensor, ...]) -> bool:
    """Let a module in training replay its passes as CUDA graphs: small ones else wait for the CPU.

    Returns:
        Whether it does: never on the CPU, nor where capturing fails or gives other predictions.
    """
    if batch[0].device.type != "cuda":
        return False
    stock = module.forward
    with torch.no_grad():
        other = (batch[0].flip(0), *batch[1:])
        expected = module(*other)
    try:
        torch.cuda.make_graphed_callables(module, batch, allow_unused_input=True)
        torch.testing.assert_close(module(*other).detach(), expected, rtol=0.02, atol=0.02)
    except (RuntimeError, AssertionError) as error:
        print(f"no CUDA graphs: {error}", flush=True)
        module.forward = stock
        return False
    return True


def generator(device: torch.device, *entropy: int) -> torch.Generator:
    """Return the generator of one step, the same for all arms."""
    state = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator(device).manual_seed(state)
