"""The estimators' coefficients: identities between them, values by hand, numerics, and what is refused."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from components.objective.commitment import adaptive
from components.objective.estimators import (
    Coefficients,
    amplification_bias,
    each_commitment,
    effective_reward,
    effective_sample_size,
    em,
    garl,
    garl_each,
    iwae,
    leave_one_out_log_mean,
    log_mean,
    paft,
    rb_rloo,
    verifree,
)
from tests.components.objective.conftest import INF, Estimator, by_commitment, by_form, float64, seeded

# Identities


def test_rl_pole_weighs_by_likelihood() -> None:
    log_w = float64((-1.0, -2.0, -3.0))
    torch.testing.assert_close(garl(log_w, 0.0, baseline=False).path, log_w.exp())
    torch.testing.assert_close(garl(log_w, 0.0, baseline=False, debias=True).path, log_w.exp())


def test_marginal_likelihood_pole_weighs_by_the_posterior() -> None:
    log_w = float64((-1.0, -2.0, -3.0))
    torch.testing.assert_close(garl(log_w, 1.0, baseline=False).path, log_w.softmax(-1))


def test_baselined_scores_at_the_marginal_likelihood_pole_sum_to_zero() -> None:
    score = garl(float64((-1.0, -2.0, -3.0)), 1.0).score
    assert score.sum().item() == pytest.approx(0, abs=1e-15)


def test_special_cases_are_points_of_the_continuum() -> None:
    log_w = float64((-1.0, -2.0, -3.0), (-4.0, -1.0, -INF))
    w = log_w.exp()
    torch.testing.assert_close(rb_rloo(log_w).score, w - (w.sum(-1, keepdim=True) - w) / 2)
    torch.testing.assert_close(rb_rloo(log_w).path, w)
    assert torch.equal(verifree(log_w).score, rb_rloo(log_w).score)
    torch.testing.assert_close(iwae(log_w).path, 3 * log_w.softmax(-1))
    assert torch.equal(iwae(log_w).score, iwae(log_w).path)
    counts = em(log_w, draws=2, generator=seeded(0)).score * 2 / 3
    torch.testing.assert_close(counts, counts.round())
    torch.testing.assert_close(counts.sum(-1), float64(2.0, 2.0))


@by_form
@by_commitment
def test_normalising_divides_by_m_to_the_q(form: dict[str, bool], q: float) -> None:
    log_w = float64((-1.0, -2.0, -3.0))
    normalised, plain = garl(log_w, q, **form), garl(log_w, q, normalize=False, **form)
    torch.testing.assert_close(normalised.score * 3**q, plain.score)
    torch.testing.assert_close(normalised.path * 3**q, plain.path)
    resampled, raw = (paft(log_w, q, normalize=on, generator=seeded(0)) for on in (True, False))
    torch.testing.assert_close(resampled.path * 3**q, raw.path)


@by_form
@by_commitment
def test_rollouts_and_groups_are_treated_alike(form: dict[str, bool], q: float) -> None:
    log_w = 3 * torch.randn(4, 5, generator=seeded(0), dtype=torch.float64)
    rows, columns = torch.randperm(4, generator=seeded(1)), torch.randperm(5, generator=seeded(2))
    straight, shuffled = garl(log_w, q, **form), garl(log_w[rows][:, columns], q, **form)
    torch.testing.assert_close(shuffled.score, straight.score[rows][:, columns])
    torch.testing.assert_close(shuffled.path, straight.path[rows][:, columns])


# Values by hand


def test_garl_plug_in_by_hand() -> None:
    # w = (0.04, 0.32), w_bar = 0.18, w_bar^0.5 = 0.4242641
    coefficients = garl(float64((0.04, 0.32)).log(), 0.5, baseline=False, normalize=False)
    torch.testing.assert_close(coefficients.path, float64((0.0942809, 0.7542472)), rtol=0, atol=1e-7)
    assert torch.equal(coefficients.score, coefficients.path)


def test_garl_with_baseline_by_hand() -> None:
    # The baselines are the square roots of the other weight: 0.5656854 and 0.2
    coefficients = garl(float64((0.04, 0.32)).log(), 0.5, normalize=False)
    torch.testing.assert_close(coefficients.score, float64((-0.4714045, 0.5542472)), rtol=0, atol=1e-7)
    torch.testing.assert_close(coefficients.path, float64((0.0942809, 0.7542472)), rtol=0, atol=1e-7)


def test_debiased_garl_by_hand() -> None:
    # w_m (2 / 0.4242641 - 1 / sqrt(w_m)): the group without the other rollout is rollout m alone
    coefficients = garl(float64((0.04, 0.32)).log(), 0.5, debias=True, normalize=False)
    torch.testing.assert_close(coefficients.path, float64((-0.0114382, 0.9428091)), rtol=0, atol=1e-7)
    torch.testing.assert_close(coefficients.score, float64((-0.5771236, 0.7428091)), rtol=0, atol=1e-7)


def test_paft_by_hand() -> None:
    # One rollout has all the weight: n = (0, 4), w_bar = 0.18, so 0.4242641 * 2 * 4 / 4
    coefficients = paft(float64((0.0, 0.36)).log(), 0.5, draws=4, normalize=False)
    torch.testing.assert_close(coefficients.path, float64((0.0, 0.8485281)), rtol=0, atol=1e-7)
    assert torch.equal(coefficients.score, coefficients.path)


def test_garl_of_scores_alone_by_hand() -> None:
    coefficients = garl(float64((0.04, 0.32)).log(), 0.5, normalize=False).score_only
    torch.testing.assert_close(coefficients.score, float64((-0.4714045, 0.5542472)), rtol=0, atol=1e-7)
    assert torch.equal(coefficients.path, float64((0.0, 0.0)))


def test_garl_with_a_commitment_for_each_example_by_hand() -> None:
    """w = (10^-4, 10^-2): the others' mean is 10^-2 and 10^-4, so q = 1/2 and 3/4; w_bar = 0.00505."""
    log_w = float64((1e-4, 1e-2)).log()
    torch.testing.assert_close(each_commitment(log_w), float64((0.5, 0.75)))
    coefficients = garl_each(log_w, normalize=False)
    path = float64((1e-4 / 0.005050**0.5, 1e-2 / 0.005050**0.75))  # 0.0014072, 0.5278755
    torch.testing.assert_close(path, float64((0.0014072, 0.5278755)), rtol=0, atol=1e-7)
    torch.testing.assert_close(coefficients.path, path)
    torch.testing.assert_close(coefficients.score, path - 0.1)  # the baselines: (10^-2)^(1/2) and (10^-4)^(1/4)
    plug_in = garl_each(log_w, baseline=False, normalize=False)
    assert torch.equal(plug_in.score, coefficients.path)
    normalised = garl_each(log_w)
    torch.testing.assert_close(normalised.path * 2, coefficients.path)
    torch.testing.assert_close(normalised.score * 2, coefficients.score)


def test_warm_examples_with_their_own_commitment_are_at_the_rl_pole() -> None:
    log_w = float64((0.2, 0.5, 0.9)).log()
    assert torch.equal(each_commitment(log_w), float64((0.0, 0.0, 0.0)))
    warm, pole = garl_each(log_w, normalize=False), garl(log_w, 0.0)
    assert torch.equal(warm.score, pole.score)
    assert torch.equal(warm.path, pole.path)


def test_an_examples_commitment_is_the_adaptive_one_of_the_others_mean() -> None:
    log_w = -30 * torch.rand(20, 5, generator=seeded(0), dtype=torch.float64)
    others = leave_one_out_log_mean(log_w)
    torch.testing.assert_close(each_commitment(log_w), others.clone().apply_(adaptive), rtol=1e-14, atol=1e-14)


# Diagnostics


def test_group_carries_a_gradient_if_any_coefficient_is_not_zero() -> None:
    zero, some = float64((0.0, 0.0), (0.0, 0.0), (0.0, 0.0)), float64((0.0, 0.0), (0.0, -0.1), (0.0, 0.0))
    assert Coefficients(zero, some).carries_gradient.tolist() == [False, True, False]
    assert Coefficients(some, zero).carries_gradient.tolist() == [False, True, False]


def test_diagnostics_by_hand() -> None:
    log_w = float64((0.1, 0.2, 0.6), (0.5, 0.0, 0.0)).log()
    torch.testing.assert_close(log_mean(log_w), float64(0.3, 0.5 / 3).log())
    torch.testing.assert_close(leave_one_out_log_mean(log_w), float64((0.4, 0.35, 0.15), (0.0, 0.25, 0.25)).log())
    torch.testing.assert_close(effective_sample_size(log_w), float64(0.81 / 0.41, 1.0))


def test_leave_one_out_mean_survives_a_rollout_with_nearly_all_the_weight() -> None:
    without_it = leave_one_out_log_mean(float64((0.0, -100.0, -900.0)))[0, 0]
    assert without_it.item() == pytest.approx(-100 - math.log(2), rel=1e-14)


def test_effective_sample_size_is_one_to_m() -> None:
    log_w = float64((-800.0, -800.0, -800.0), (-3.0, -800.0, -INF), (-INF, -INF, -INF))
    torch.testing.assert_close(effective_sample_size(log_w), float64(3.0, 1.0, 0.0))


@pytest.mark.parametrize("q", [0.0, 0.25, 0.5, 1.0])
def test_the_predicted_bias_of_the_amplification_is_the_exact_one_to_first_order(q: float) -> None:
    """Weights of 1 and 3 with equal chance: how many are 3 is binomial, so that the mean of w_bar^-q is a sum."""
    size = 200
    chances = [math.comb(size, threes) / 2**size for threes in range(size + 1)]
    means = [1 + 2 * threes / size for threes in range(size + 1)]
    exact = sum(chance * mean**-q for chance, mean in zip(chances, means, strict=True)) * 2**q - 1
    samples = [(size * mean) ** 2 / (size * (4 * mean - 3)) for mean in means]  # a weight's square is 4 w - 3
    drawn = [sample for sample, chance in zip(samples, chances, strict=True) for _ in range(round(chance * 10_000))]
    assert amplification_bias(q, drawn, size) == pytest.approx(exact, rel=0.05, abs=1e-12)
    assert (exact > 1e-4) == (q > 0)


@by_commitment
def test_effective_reward_lies_between_zero_and_one(q: float) -> None:
    log_w = -20 * torch.rand(50, 6, generator=seeded(0), dtype=torch.float64)
    reward = effective_reward(log_w, q)
    assert (reward >= 0).all()
    assert (reward <= 1 + 1e-12).all()
    torch.testing.assert_close(reward, log_w.exp() / log_w.exp().mean(-1, keepdim=True) ** q / 6**q)
    torch.testing.assert_close(effective_reward(float64((0.0, -INF, -INF)), q), float64((1.0, 0.0, 0.0)))


# Numerics


def test_commitments_of_examples_survive_weights_that_underflow_or_are_zero() -> None:
    log_w = float64((-900.0, -901.0, -INF), (0.0, -INF, -INF), (-INF, -INF, -INF))
    q = each_commitment(log_w)
    torch.testing.assert_close(q[0, 2].item(), adaptive(-900 + math.log((1 + math.exp(-1)) / 2)))
    assert q[1:].tolist() == [[1, 0, 0], [1, 1, 1]]  # a half, and nothing, are the means of the others
    coefficients = garl_each(log_w, normalize=False)
    assert coefficients.score.isfinite().all()
    # P is brought to 0.1: a share of the posterior, times M, times 0.1; nearly, for w_loo is not w_bar
    torch.testing.assert_close(coefficients.path[0], 0.3 * log_w[0].softmax(-1), rtol=0.01, atol=0)
    torch.testing.assert_close(coefficients.path[1], float64(3.0, 0.0, 0.0))
    assert coefficients.score[1].tolist() == pytest.approx([3.0, -0.5, -0.5])
    assert coefficients.carries_gradient.tolist() == [True, True, False]


@by_form
@by_commitment
def test_coefficients_are_exact_where_every_weight_underflows_float32(form: dict[str, bool], q: float) -> None:
    log_w = float64((-1.0, -2.0, -4.0))
    shifted, plain = garl(log_w - 800, q, **form), garl(log_w, q, **form)
    torch.testing.assert_close(shifted.path, plain.path * math.exp(-800 * (1 - q)), rtol=1e-10, atol=0)
    torch.testing.assert_close(shifted.score, plain.score * math.exp(-800 * (1 - q)), rtol=1e-10, atol=1e-300)
    resampled, raw = (paft(log_w - shift, q, generator=seeded(0)).path for shift in (800, 0))
    torch.testing.assert_close(resampled, raw * math.exp(-800 * (1 - q)), rtol=1e-10, atol=0)


@by_form
@by_commitment
def test_group_without_weight_is_zero_and_leaves_the_others_alone(form: dict[str, bool], q: float) -> None:
    log_w = float64((-INF, -INF, -INF), (-1.0, -2.0, -3.0))
    coefficients, alone = garl(log_w, q, **form), garl(log_w[1:], q, **form)
    assert not coefficients.score[0].any()
    assert not coefficients.path[0].any()
    assert coefficients.carries_gradient.tolist() == [False, True]
    torch.testing.assert_close(coefficients.score[1:], alone.score)


@by_commitment
def test_paft_of_a_group_without_weight_is_zero(q: float) -> None:
    coefficients = paft(float64((-INF, -INF), (-1.0, -2.0)), q, generator=seeded(0))
    assert not coefficients.path[0].any()
    assert coefficients.carries_gradient.tolist() == [False, True]


@by_form
@by_commitment
def test_impossible_rollout_has_no_path(form: dict[str, bool], q: float) -> None:
    coefficients = garl(float64((-1.0, -INF, -2.0)), q, **form)
    assert coefficients.path[0, 1] == 0
    assert coefficients.path.isfinite().all()
    assert coefficients.score.isfinite().all()


@by_commitment
def test_debiased_garl_with_weight_on_one_rollout_alone(q: float) -> None:
    # Leaving out that rollout leaves nothing, and nothing has no gradient; leaving out another gives w / 2 of two.
    w = 0.3
    path = garl(float64((math.log(w), -INF, -INF)), q, baseline=False, debias=True, normalize=False).path
    expected = w * (3 * (w / 3) ** -q - 2 * (w / 2) ** -q)
    torch.testing.assert_close(path, float64((expected, 0.0, 0.0)))


@by_commitment
def test_debiased_garl_is_the_jackknife_of_plug_in_garl(q: float) -> None:
    def plug_in(log_w: Tensor) -> Tensor:  # the weight of each rollout in the estimate, its share of the mean included
        return garl(log_w, q, baseline=False, normalize=False).path[0] / log_w.shape[-1]

    log_w = float64((-1.0, -50.0, -700.0, -INF, -2.0))
    jackknife = 5 * plug_in(log_w)
    for j in range(5):
        rest = [m for m in range(5) if m != j]
        jackknife[rest] -= 4 / 5 * plug_in(log_w[:, rest])
    debiased = garl(log_w, q, baseline=False, debias=True, normalize=False).path[0] / 5
    torch.testing.assert_close(debiased, jackknife)


def test_debiased_garl_where_one_weight_towers_over_the_rest() -> None:
    """Twice the plug-in's amplification, less 1 / M; the others lose what it gains, by their share of what is left."""
    log_w = float64((0.0, -60.0, -61.0, -90.0))
    plug_in, debiased = (garl(log_w, 1.0, baseline=False, debias=on, normalize=False).path[0] for on in (False, True))
    torch.testing.assert_close(plug_in, float64(4, 0, 0, 0), rtol=0, atol=1e-12)
    share = 1 / (1 + math.exp(-1))
    expected = 4 * float64(2 - 1 / 4, -(1 - 1 / 4) * share, -(1 - 1 / 4) * (1 - share), 0)
    torch.testing.assert_close(debiased, expected, rtol=0, atol=1e-9)


@by_form
@by_commitment
def test_very_different_scales_stay_finite(form: dict[str, bool], q: float) -> None:
    coefficients = garl(float64((0.0, -800.0, -1600.0), (-1e-12, -5.0, -1e6)), q, **form)
    assert coefficients.score.isfinite().all()
    assert coefficients.path.isfinite().all()


@pytest.mark.parametrize(
    "estimator", [partial(garl, q=0.5), partial(garl, q=0.5, debias=True), partial(paft, q=0.5), garl_each]
)
def test_results_are_detached_float64_whatever_comes_in(estimator: Estimator) -> None:
    coefficients = estimator(torch.tensor([[-1.0, -2.0]], dtype=torch.float32, requires_grad=True))
    for values in (coefficients.score, coefficients.path):
        assert values.dtype == torch.float64
        assert not values.requires_grad


@by_commitment
def test_single_rollout_without_baseline_is_fine(q: float) -> None:
    expected = float64((0.3 ** (1 - q),))
    torch.testing.assert_close(garl(float64((math.log(0.3),)), q, baseline=False).path, expected)
    torch.testing.assert_close(paft(float64((math.log(0.3),)), q).path, expected)


# Resampling


@pytest.mark.parametrize("draws", [1, 5, 64])
def test_paft_counts_sum_to_the_draws(draws: int) -> None:
    log_w = torch.randn(10, 4, generator=seeded(0), dtype=torch.float64)
    coefficients = paft(log_w, 1.0, draws=draws, normalize=False, generator=seeded(1))
    counts = coefficients.path * draws / 4
    torch.testing.assert_close(counts, counts.round())
    torch.testing.assert_close(counts.sum(-1), torch.full((10,), float(draws), dtype=torch.float64))


def test_paft_draws_m_by_default() -> None:
    log_w = float64((-1.0, -2.0, -3.0))
    default, explicit = (paft(log_w, 0.5, draws=draws, generator=seeded(0)) for draws in (None, 3))
    assert torch.equal(default.path, explicit.path)


def test_paft_is_decided_by_its_generator_alone() -> None:
    log_w = torch.zeros(20, 8)
    before = torch.get_rng_state()
    first, again, other = (paft(log_w, 0.5, generator=seeded(seed)).path for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_paft_continues_its_generator_from_call_to_call() -> None:
    log_w, generator = torch.zeros(20, 8), seeded(7)
    assert not torch.equal(paft(log_w, 0.5, generator=generator).path, paft(log_w, 0.5, generator=generator).path)


# Refusals


@pytest.mark.parametrize("q", [-0.01, 1.01, math.nan])
def test_commitment_outside_its_range_is_refused(q: float) -> None:
    for estimator in (garl, paft):
        with pytest.raises(ValueError, match="outside \\[0, 1\\]"):
            estimator(torch.zeros(1, 2), q)


@pytest.mark.parametrize("value", [math.nan, INF])
@pytest.mark.parametrize("function", [partial(garl, q=0.5), partial(paft, q=0.5), garl_each, log_mean])
def test_broken_log_weights_are_refused_by_name(function: Callable[[Tensor], object], value: float) -> None:
    with pytest.raises(ValueError, match="log_w holds NaN or \\+inf"):
        function(float64((-1.0, value)))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (partial(garl, q=0.5), "baseline"),
        (partial(garl, q=0.5, baseline=False, debias=True), "debias"),
        (garl_each, "a commitment for each example"),
        (partial(garl_each, baseline=False), "a commitment for each example"),
        (leave_one_out_log_mean, "leave-one-out"),
    ],
)
def test_single_rollout_is_refused_where_rollouts_are_compared(function: Callable[[Tensor], object], name: str) -> None:
    with pytest.raises(ValueError, match=f"M = 1: .*{name}.*raise the group size"):
        function(torch.zeros(3, 1))


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (2, 0)])
def test_anything_but_groups_of_rollouts_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        garl(torch.zeros(shape), 0.5)


def test_paft_needs_a_draw() -> None:
    with pytest.raises(ValueError, match="draws = 0"):
        paft(torch.zeros(1, 2), 0.5, draws=0)
