"""Learning-rate schedules, and how a system hands one to Lightning with its optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer


def optimizer_with_schedule(
    parameters: Iterable[nn.Parameter],
    build_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
    build_scheduler: Callable[[Optimizer], Any] | None,
) -> Any:
    """Return what Lightning's `configure_optimizers` takes; the schedule moves every step.

    Args:
        parameters: what is trained.
        build_optimizer: makes the optimizer of them.
        build_scheduler: makes the scheduler of the optimizer; None for a constant rate.
    """
    optimizer: Any = build_optimizer(parameters)
    # A fused optimizer offers to unscale gradients within its step, and Lightning then refuses to
    # clip them in mixed precision, in bfloat16 too, where nothing is scaled. Decline the offer.
    optimizer._step_supports_amp_scaling = False
    if build_scheduler is None:
        return optimizer
    scheduler = {"scheduler": build_scheduler(optimizer), "interval": "step"}
    return {"optimizer": optimizer, "lr_scheduler": scheduler}


def warmup_hold_decay(
    step: int, *, total_steps: int, warmup_steps: int, decay_share: float, final: float
) -> float:
    """Return the factor of the learning rate at a step: rise, stay at 1, fall in a straight line.

    A function and not a scheduler's state, so a run that is resumed with more steps simply goes on.

    Args:
        step: optimizer steps done.
        total_steps: of the whole run.
        warmup_steps: of the rise from (almost) 0.
        decay_share: share of the run, at its end, in which the factor falls.
        final: factor at the end.
    """
    rise = min(1.0, (step + 1) / max(warmup_steps, 1))
    remaining = max(total_steps - step, 0) / max(decay_share * total_steps, 1.0)
    return rise * (final + (1.0 - final) * min(1.0, remaining))
