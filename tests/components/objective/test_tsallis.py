"""The loss family against its definition, and the times of gradient flow against the equations they solve."""

import math

import pytest
import torch
from scipy.integrate import quad, solve_ivp

from components.objective import tsallis
from tests.components.objective.conftest import COMMITMENTS, float64


@pytest.mark.parametrize("q", [0.0, 0.25, 0.5, 0.75])
def test_log_q_is_the_power_form(q: float) -> None:
    u = float64(1e-6, 0.03, 0.5, 1.0)
    torch.testing.assert_close(tsallis.log_q(u, q), (u ** (1 - q) - 1) / (1 - q))


def test_log_q_at_one_is_the_logarithm() -> None:
    u = float64(1e-300, 0.5, 1.0)
    assert torch.equal(tsallis.log_q(u, 1.0), u.log())


@pytest.mark.parametrize("step", [1e-6, 1e-9, 1e-12, 2.0**-53])
def test_log_q_stays_exact_as_q_approaches_one(step: float) -> None:
    x = float64(1e-30, 1e-3, 0.9).log()
    series = x + step * x**2 / 2 + step**2 * x**3 / 6
    torch.testing.assert_close(tsallis.log_q(x.exp(), 1 - step), series, rtol=1e-13, atol=0)


def test_log_q_of_zero_is_its_limit() -> None:
    assert tsallis.log_q(0.0, 0.5).item() == -2
    assert tsallis.log_q(0.0, 1.0).item() == -math.inf


@pytest.mark.parametrize(("q", "expected"), [(0.0, 1.0), (0.5, 2.0), (0.75, 4.0), (1.0, 800.0)])
def test_loss_is_exact_where_p_underflows(q: float, expected: float) -> None:
    assert tsallis.loss(-800.0, q).item() == pytest.approx(expected, rel=1e-12)


def test_loss_is_float64_whatever_comes_in() -> None:
    assert tsallis.loss(torch.tensor([-1.0], dtype=torch.float32), 0.5).dtype == torch.float64
    assert tsallis.loss(-1.0, 0.5).dtype == torch.float64


@pytest.mark.parametrize("q", COMMITMENTS)
def test_gradient_amplifies_rl_and_attenuates_marginal_likelihood(q: float) -> None:
    theta = float64(-6.0, 0.3).requires_grad_()
    log_p = torch.nn.functional.logsigmoid(theta)
    grad_q, grad_0, grad_1 = (
        torch.autograd.grad(tsallis.loss(log_p, order).sum(), theta, retain_graph=True)[0] for order in (q, 0.0, 1.0)
    )
    torch.testing.assert_close(grad_q, tsallis.amplification(log_p.detach(), q) * grad_0)
    torch.testing.assert_close(grad_q, tsallis.attenuation(log_p.detach(), q) * grad_1)


def test_amplification_and_attenuation_at_the_poles_ignore_p() -> None:
    log_p = float64(-math.inf, -800.0, 0.0)
    assert torch.equal(tsallis.amplification(log_p, 0.0), torch.ones(3, dtype=torch.float64))
    assert torch.equal(tsallis.attenuation(log_p, 1.0), torch.ones(3, dtype=torch.float64))
    assert tsallis.amplification(-800.0, 0.5).item() == pytest.approx(math.exp(400), rel=1e-12)
    assert tsallis.attenuation(-800.0, 0.5).item() == pytest.approx(math.exp(-400), rel=1e-12)


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_commitment_outside_its_range_is_refused(q: float) -> None:
    for function in (tsallis.loss, tsallis.amplification, tsallis.attenuation, tsallis.escape_time):
        with pytest.raises(ValueError, match="outside \\[0, 1\\]"):
            function(-1.0, q)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_log_probability_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="log P holds NaN or \\+inf"):
        tsallis.loss(float64(-1.0, value), 0.5)


def test_log_q_refuses_negative_numbers() -> None:
    with pytest.raises(ValueError, match="u >= 0"):
        tsallis.log_q(float64(0.5, -0.1), 0.5)


@pytest.mark.parametrize("q", COMMITMENTS)
@pytest.mark.parametrize("target", [1e-3, 0.5, 0.999])
def test_escape_time_is_the_integral_of_equation_15(q: float, target: float) -> None:
    p0 = float64(1e-12, 1e-4, 0.5 * target)

    def rate(s: float) -> float:  # du = u ds with u = e^s
        return math.exp((q - 1) * s) / (1 - math.exp(s)) ** 2

    def integral(start: float) -> float:  # the steep part apart from the rest, so that quad meets its tolerance
        cuts = [start, *(s for s in (-25, -20, -15, -10, -6, -3, -1, -0.1, -0.01) if start < s < math.log(target))]
        ends = [*cuts[1:], math.log(target)]
        return sum(quad(rate, a, b, epsabs=0, epsrel=1e-13)[0] for a, b in zip(cuts, ends, strict=True))

    expected = float64(*(integral(math.log(p)) for p in p0))
    torch.testing.assert_close(tsallis.escape_time(p0.log(), q, target), expected, rtol=1e-11, atol=0)


def test_escape_time_has_its_textbook_forms_at_the_poles() -> None:
    def antiderivative(u: torch.Tensor, q: int) -> torch.Tensor:
        logit = torch.log(u) - torch.log1p(-u)
        return logit + 1 / (1 - u) if q else 2 * logit - 1 / u + 1 / (1 - u)

    p0, target = float64(1e-12, 1e-6, 0.2), float64(0.9)
    for q in (0, 1):
        expected = antiderivative(target, q) - antiderivative(p0, q)
        torch.testing.assert_close(tsallis.escape_time(p0.log(), float(q), 0.9), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("q", COMMITMENTS)
def test_gradient_flow_reaches_the_target_at_the_escape_time(q: float) -> None:
    def descent(_: float, theta: list[float]) -> float:
        logit = torch.tensor(theta[0], dtype=torch.float64, requires_grad=True)
        tsallis.loss(torch.nn.functional.logsigmoid(logit), q).backward()
        assert logit.grad is not None
        return -logit.grad.item()

    p0, target = 0.02, 0.7
    start = math.log(p0 / (1 - p0))
    time = tsallis.escape_time(math.log(p0), q, target).item()
    end = solve_ivp(descent, (0, time), [start], rtol=1e-8, atol=1e-10).y[0, -1]
    assert 1 / (1 + math.exp(-end)) == pytest.approx(target, abs=1e-6)


@pytest.mark.parametrize("q", COMMITMENTS)
def test_escape_time_grows_like_its_closed_form(q: float) -> None:
    log_p0 = -math.log(10) * float64(2, 5, 60)
    ratio = tsallis.escape_time(log_p0, q) / tsallis.escape_time_order(log_p0, q)
    assert (ratio - 1).abs().diff().lt(0).all()
    assert ratio[-1].item() == pytest.approx(1, abs=0.02 if q == 1 else 1e-6)


@pytest.mark.parametrize("q", [0.0, 0.25, 0.5, 0.75])
def test_escape_time_has_slope_q_minus_one_on_log_axes(q: float) -> None:
    log_p0 = float64(-60.0, -61.0)
    slope = tsallis.escape_time(log_p0, q).log().diff() / log_p0.diff()
    assert slope.item() == pytest.approx(q - 1, abs=1e-5)
    order_slope = tsallis.escape_time_order(log_p0, q).log().diff() / log_p0.diff()
    assert order_slope.item() == pytest.approx(q - 1, abs=1e-12)


def test_escape_time_order_is_the_logarithm_at_one() -> None:
    assert tsallis.escape_time_order(math.log(1e-3), 1.0).item() == pytest.approx(math.log(1000))
    assert tsallis.escape_time_order(math.log(1e-4), 0.5).item() == pytest.approx(200)


@pytest.mark.parametrize("q", COMMITMENTS)
def test_escape_time_at_the_edges_of_p0(q: float) -> None:
    times = tsallis.escape_time(float64(-math.inf, -300.0, math.log(0.5), math.log(0.9), 0.0, 1e-15), q)
    assert times[0] == math.inf
    assert 300 <= times[1] < math.inf
    torch.testing.assert_close(times[2:], torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("q", COMMITMENTS)
def test_escape_to_a_tiny_target_is_all_leading_term(q: float) -> None:
    log_p0, log_target = -501.0, -500.0
    expected = (tsallis.escape_time_order(log_p0, q) - tsallis.escape_time_order(log_target, q)).item()
    assert tsallis.escape_time(log_p0, q, math.exp(log_target)).item() == pytest.approx(expected, rel=1e-12)


def test_escape_time_is_continuous_in_q_at_one() -> None:
    below, at = (tsallis.escape_time(-30.0, q).item() for q in (1 - 1e-9, 1.0))
    assert below == pytest.approx(at, rel=1e-7)


@pytest.mark.parametrize("target", [0.0, 1.0, math.nan])
def test_escape_needs_a_target_between_zero_and_one(target: float) -> None:
    with pytest.raises(ValueError, match="target"):
        tsallis.escape_time(-5.0, 0.5, target)


@pytest.mark.parametrize("q", [0.25, 0.5, 1.0])
def test_escort_minimiser_minimises_the_loss(q: float) -> None:
    alpha = float64(0.5, 0.3, 0.2)
    logits = tsallis.escort_minimiser(alpha, q).log().requires_grad_()
    value = (alpha * tsallis.loss(torch.log_softmax(logits, -1), q)).sum()
    (gradient,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(gradient, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-14)
    worse = (alpha * tsallis.loss(torch.log_softmax(logits + float64(0.1, 0, -0.1), -1), q)).sum()
    assert worse > value


def test_escort_minimiser_sharpens_from_the_data_to_the_mode() -> None:
    alpha = float64(0.5, 0.3, 0.2)
    torch.testing.assert_close(tsallis.escort_minimiser(alpha, 1.0), alpha)
    torch.testing.assert_close(tsallis.escort_minimiser(alpha, 0.5), float64(25, 9, 4) / 38)
    assert torch.equal(tsallis.escort_minimiser(alpha, 1e-320), float64(1, 0, 0))
    assert torch.equal(tsallis.escort_minimiser(alpha, 0.0), float64(1, 0, 0))


def test_escort_minimiser_shares_ties_and_keeps_zeros() -> None:
    alpha = float64(0.4, 0.2, 0.4, 0.0)
    assert torch.equal(tsallis.escort_minimiser(alpha, 0.0), float64(0.5, 0, 0.5, 0))
    assert tsallis.escort_minimiser(alpha, 0.5)[3] == 0


@pytest.mark.parametrize("alpha", [(0.5, -0.1), (0.0, 0.0), (math.nan, 1.0), (math.inf, 1.0)])
def test_escort_minimiser_refuses_what_is_no_distribution(alpha: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="alpha"):
        tsallis.escort_minimiser(float64(*alpha), 0.5)


@pytest.mark.parametrize("q", COMMITMENTS)
@pytest.mark.parametrize("noise", [0.01, 0.3])
def test_contamination_settles_at_the_escort_minimiser(q: float, noise: float) -> None:
    expected = tsallis.escort_minimiser(float64(1 - noise, noise), q)[1].item()
    assert tsallis.contamination_level(noise, q) == pytest.approx(expected, rel=1e-12)


def test_contamination_level_at_one_is_the_noise_and_vanishes_with_q() -> None:
    assert tsallis.contamination_level(0.1, 1.0) == pytest.approx(0.1)
    assert tsallis.contamination_level(0.1, 0.5) == pytest.approx(1 / 82)
    assert tsallis.contamination_level(0.1, 1e-5) == 0


@pytest.mark.parametrize("q", [0.25, 0.5, 0.75, 1.0])
def test_contamination_time_is_the_small_level_limit_of_equation_16(q: float) -> None:
    noise = 0.2

    def time(eta: float) -> float:
        def pace(u: float) -> float:
            return 1 / ((noise * u**-q - (1 - noise) * (1 - u) ** -q) * (1 - u) ** 2)

        return quad(pace, 0, eta, epsabs=0, epsrel=1e-10)[0]

    level = tsallis.contamination_level(noise, q)
    gaps = [abs(time(eta) / tsallis.contamination_time(eta, noise, q) - 1) for eta in (1e-1 * level, 1e-8 * level)]
    assert gaps[1] < min(0.02, gaps[0])


@pytest.mark.parametrize("q", COMMITMENTS)
def test_contamination_beyond_its_level_is_never_reached(q: float) -> None:
    level = tsallis.contamination_level(0.2, q)
    assert tsallis.contamination_time(max(level, 1e-9), 0.2, q) == math.inf
    assert q == 0 or tsallis.contamination_time(0.99 * level, 0.2, q) < math.inf


@pytest.mark.parametrize("noise", [0.0, 0.5, math.nan])
def test_noise_must_be_a_minority(noise: float) -> None:
    with pytest.raises(ValueError, match="noise"):
        tsallis.contamination_level(noise, 0.5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_contamination_time_needs_a_probability(eta: float) -> None:
    with pytest.raises(ValueError, match="eta"):
        tsallis.contamination_time(eta, 0.1, 0.5)
