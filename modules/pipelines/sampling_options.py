"""What can be asked of sampling: read without torch, so that a wrong value is told at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.contract import UserError

SOLVERS = ("euler", "heun", "dpmsolver++")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a flow is integrated.

    Args:
        steps: of the solver. Heun's method passes the denoiser twice in every step but the last.
        solver: `euler`, `heun` (second order) or `dpmsolver++` (second order, multistep).
        guidance: scale of classifier-free guidance; 1 is none and costs half.
        guidance_interval: noise levels, from and to, between which guidance acts.
        guidance_rescale: share, in [0, 1], by which the guided clean prediction gets back the
            deviation of the one without guidance: against saturated colours.

    Raises:
        UserError: a value is out of its range.
    """

    steps: int = 20
    solver: str = "euler"
    guidance: float = 3.0
    guidance_interval: Sequence[float] = (0.0, 1.0)
    guidance_rescale: float = 0.0

    def __post_init__(self) -> None:
        try:
            low, high = map(float, self.guidance_interval)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"guidance_interval={self.guidance_interval} must be two numbers, as in [0.2, 0.8]"
            ) from error
        object.__setattr__(self, "guidance_interval", (low, high))  # a list where YAML says so
        for key in ("steps", "guidance", "guidance_rescale"):
            if not isinstance(getattr(self, key), int | float):
                raise UserError(f"{key}={getattr(self, key)} must be a number")
        if self.steps < 1:
            raise UserError(f"steps={self.steps} must be at least 1")
        if self.solver not in SOLVERS:
            raise UserError(f"solver={self.solver}: choose one of {', '.join(SOLVERS)}")
        if not math.isfinite(self.guidance):
            raise UserError(f"guidance={self.guidance} must be a finite number; 1 is none")
        if not 0.0 <= low <= high <= 1.0:
            raise UserError(f"guidance_interval=[{low}, {high}] must rise within [0, 1]")
        if not 0.0 <= self.guidance_rescale <= 1.0:
            raise UserError(f"guidance_rescale={self.guidance_rescale} must lie in [0, 1]")

    def guides(self, level: float) -> bool:
        """Return whether guidance acts at a noise level."""
        low, high = self.guidance_interval
        return self.guidance != 1.0 and low <= level <= high
