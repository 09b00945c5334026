"""Solvers on flows whose solution is known."""

import pytest
import torch

from data_pipeline.contract import UserError
from modules.pipelines.sampling import integrate, make_scheduler
from modules.pipelines.sampling_options import Sampling

SHAPE = (2, 3, 1, 4, 1, 1)


def curved_flow(latents, timesteps, guided):
    """Velocity dx/dt = x: the solution at t = 0 is noise / e."""
    return latents


def error_of(solver: str, steps: int) -> float:
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    result = integrate(curved_flow, noise, Sampling(steps=steps, solver=solver), shift=1.0)
    return (result - noise / torch.e).abs().max().item()


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_the_error_of_a_solver_falls_with_its_order(solver, order):
    ratio = error_of(solver, 20) / error_of(solver, 40)
    assert ratio == pytest.approx(2**order, rel=0.15)


@pytest.mark.parametrize("steps", [10, 20, 40])
def test_dpm_solver_is_far_closer_than_euler_for_as_many_passes(steps):
    """No order is tested: its variable, log((1 - t) / t), is infinite at both ends."""
    assert error_of("dpmsolver++", steps) < error_of("euler", steps) / 8


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmsolver++"])
@pytest.mark.parametrize("shift", [1.0, 3.1])
def test_all_solvers_step_over_the_same_levels(solver, shift):
    scheduler = make_scheduler(Sampling(steps=7, solver=solver), shift)
    levels = torch.linspace(1.0, 0.0, 8)
    expected = shift * levels / (1.0 + (shift - 1.0) * levels)
    found = torch.unique(scheduler.sigmas).flip(0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert len(scheduler.timesteps) == len(scheduler.sigmas) - 1
    assert scheduler.sigmas[0] <= 1.0


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmsolver++"])
def test_an_item_is_bit_equal_in_any_batch_where_the_flow_is(solver):
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    together = integrate(curved_flow, noise, Sampling(steps=5, solver=solver), shift=2.0)
    alone = integrate(curved_flow, noise[1:], Sampling(steps=5, solver=solver), shift=2.0)
    assert torch.equal(alone[0], together[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"solver": "ddim"}, "choose one of euler, heun"),
        ({"guidance_interval": (0.8, 0.2)}, "must rise"),
        ({"guidance_interval": (0.5,)}, r"must be two numbers"),
        ({"guidance": float("nan")}, "must be a finite number"),
        ({"guidance_rescale": 1.5}, "must lie in"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Sampling(**options)


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmsolver++"])
@pytest.mark.parametrize("shift", [1.0, 3.1])
def test_a_flow_that_starts_part_way_takes_its_share_of_the_steps(solver, shift):
    sampling = Sampling(steps=40, solver=solver)
    levels = torch.unique(make_scheduler(sampling, shift, 0.4).sigmas).flip(0)
    assert levels[0].item() == pytest.approx(0.4)
    assert levels[-1].item() == 0.0
    whole = torch.unique(make_scheduler(sampling, shift).sigmas)
    assert len(levels) - 1 == pytest.approx((whole < 0.4).sum().item(), abs=1)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    result = integrate(curved_flow, noise, sampling, shift=shift, start=0.4)
    torch.testing.assert_close(result, noise * torch.tensor(-0.4).exp(), rtol=0.02, atol=1e-4)


def test_a_flow_that_starts_near_its_end_takes_one_step():
    assert make_scheduler(Sampling(steps=10), 1.0, 0.01).sigmas.tolist() == pytest.approx([0.01, 0])
