import pytest
import torch

from modules.losses.flow import (
    TimestepMix,
    add_noise,
    mean_over_noisy,
    mean_square,
    to_velocity,
    velocity_target,
    weighted_mean_square,
)


def make_pair():
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 4, 3, 2, 5, generator=generator).unbind(0)
    return clean, noise, torch.tensor([[0.3] * 3, [0.9, 0.0, 0.0], [1.0] * 3, [0.05, 0.5, 0.15]])


def test_path_runs_from_clean_at_0_to_noise_at_1():
    clean, noise, _ = make_pair()
    assert torch.equal(add_noise(clean, noise, torch.zeros(4, 3)), clean)
    assert torch.equal(add_noise(clean, noise, torch.ones(4, 3)), noise)


def test_velocity_is_the_derivative_of_the_path():
    clean, noise, t = make_pair()
    step = (add_noise(clean, noise, t + 1e-2) - add_noise(clean, noise, t)) / 1e-2
    target = velocity_target(clean, add_noise(clean, noise, t), noise, t, "velocity", 0.15)
    torch.testing.assert_close(step, target, rtol=1e-3, atol=1e-3)


def test_clean_and_velocity_predictions_agree_above_the_clamp():
    clean, noise, t = make_pair()
    noisy = add_noise(clean, noise, t)
    velocity = to_velocity(clean, noisy, t, "clean", 0.15)
    above = t >= 0.15
    torch.testing.assert_close(velocity[above], (noise - clean)[above], rtol=1e-4, atol=1e-5)
    assert (velocity[3, 0].abs() < (noise - clean)[3, 0].abs()).all()  # t = .05 is weighted down


@pytest.mark.parametrize("kind", ["clean", "velocity"])
def test_perfect_prediction_has_no_loss(kind):
    clean, noise, t = make_pair()
    noisy = add_noise(clean, noise, t)
    perfect = clean if kind == "clean" else noise - clean
    target = velocity_target(clean, noisy, noise, t, kind, 0.15)
    assert mean_square(to_velocity(perfect, noisy, t, kind, 0.15) - target).max() < 1e-10


def test_clean_modalities_do_not_count():
    errors = torch.tensor([[1.0, 50.0, 3.0], [5.0, 50.0, 50.0]])
    t = torch.tensor([[0.5, 0.0, 0.5], [0.5, 0.0, 0.0]])
    assert mean_over_noisy(errors, t).tolist() == [3.0, 0.0, 3.0]


def test_shares_of_the_mix_come_out():
    mix = TimestepMix(joint=0.4, texture=0.3, geometry=0.2, independent=0.1)
    t = mix.sample(20000, torch.device("cpu"), torch.Generator().manual_seed(0))
    joint = (t == t[:, :1]).all(dim=1)
    texture = (t[:, 0] > 0) & (t[:, 1:] == 0).all(dim=1)
    geometry = (t[:, 0] == 0) & (t[:, 1] > 0) & (t[:, 1] == t[:, 2])
    independent = (t > 0).all(dim=1) & (t[:, 0] != t[:, 1])
    shares = [kind.float().mean().item() for kind in (joint, texture, geometry, independent)]
    assert shares == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.01)
    assert t.max() < 1.0
    assert torch.logit(t[joint, 0]).mean().item() == pytest.approx(mix.mean, abs=0.03)


def test_levels_stand_for_what_the_mix_draws():
    mix = TimestepMix(joint=1.0, texture=0.0, geometry=0.0, independent=0.0, mean=1.0, std=0.7)
    levels = mix.levels(4)
    drawn = mix.sample(20000, torch.device("cpu"), torch.Generator().manual_seed(0))[:, 0]
    for i, level in enumerate(levels.tolist()):
        assert (drawn < level).float().mean().item() == pytest.approx((i + 0.5) / 4, abs=0.01)


def test_shares_must_sum_to_one():
    with pytest.raises(ValueError, match="sum to 1"):
        TimestepMix(joint=0.9, texture=0.9, geometry=0.0, independent=0.0)


def test_more_tokens_are_noised_more_by_the_stated_shift():
    mix = TimestepMix(mean=0.3, std=0.8, mean_tokens=64)
    shift = 3.0  # nine times the tokens
    levels, more = mix.levels(9), mix.at(64 * 9).levels(9)
    torch.testing.assert_close(more, shift * levels / (1.0 + (shift - 1.0) * levels))
    torch.testing.assert_close(mix.at(64).levels(9), levels)
    assert TimestepMix().at(10) == TimestepMix()


def test_foreground_counts_by_its_weight_and_share():
    values = torch.ones(1, 3, 2, 4, 1, 2)
    values[:, 1, 0, :, 0, 0] = 3.0  # one of four cells, half of it foreground
    coverage = torch.zeros(1, 2, 1, 2)
    coverage[0, 0, 0, 0] = 0.5
    found = weighted_mean_square(values, coverage, 5.0)
    assert found[0].tolist() == pytest.approx([1.0, (9.0 * 3.0 + 3.0) / 6.0, 1.0])
    torch.testing.assert_close(weighted_mean_square(values, coverage, 1.0), mean_square(values))
