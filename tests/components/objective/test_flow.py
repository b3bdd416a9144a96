"""Descent by the gradient of the loss alone: it takes as long as the closed forms say, and as a step by hand says."""

import math
from itertools import pairwise

import pytest
import torch
from scipy.integrate import quad

from components.objective import tsallis
from components.objective.flow import descend, escape_course, fitting_time
from tests.components.objective.conftest import by_commitment, float64


@by_commitment
@pytest.mark.parametrize("p0", [1e-2, 1e-4, 1e-6, 1e-9, 1e-20, 1e-100])
def test_descent_escapes_at_the_escape_time(q: float, p0: float) -> None:
    time, log_p = escape_course(math.log(p0), q)
    assert time[-1].item() == pytest.approx(tsallis.escape_time(math.log(p0), q).item(), rel=1e-3)
    assert log_p[[0, -1]].tolist() == pytest.approx([math.log(p0), math.log(0.5)])
    assert (time.diff() >= 0).all()  # the last steps may be below the rounding of the sum
    assert (log_p.diff() > 0).all()


@by_commitment
def test_the_course_passes_other_targets_when_they_are_due(q: float) -> None:
    time, log_p = escape_course(math.log(1e-6), q, 0.9)
    for index in (len(time) // 4, len(time) // 2, -1):
        expected = tsallis.escape_time(math.log(1e-6), q, log_p[index].exp().item())
        assert time[index].item() == pytest.approx(expected.item(), rel=1e-3)


def test_a_higher_q_is_sooner_everywhere_on_the_way() -> None:
    courses = [escape_course(math.log(1e-5), q)[0] for q in (0.0, 0.1, 0.4, 0.7, 0.95, 1.0)]
    for slower, faster in pairwise(courses):
        assert (slower[1:] > faster[1:]).all()


def test_one_step_by_hand() -> None:
    """From theta = -2 to 0 in one stride of 2, with the speed at -1."""
    for q, speed in [(1.0, 1 / (1 + math.exp(-1))), (0.0, 1 / (1 + math.exp(-1)) / (1 + math.e))]:
        time, theta = descend(lambda x, q=q: tsallis.loss(torch.nn.functional.logsigmoid(x), q), -2, 0, steps=1)
        assert time.tolist() == pytest.approx([0, 2 / speed])
        assert theta.tolist() == [-2, 0]


def test_a_parabola_is_descended_by_its_logarithm() -> None:
    """dx/dt = -x, so from 8 to 1 takes log 8; the error of the midpoint rule falls with the square of the stride."""
    coarse, fine = (descend(lambda x: x**2 / 2, 8, 1, steps)[0][-1].item() - math.log(8) for steps in (100, 200))
    assert abs(fine) < 1e-3
    assert coarse / fine == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize(("start", "stop"), [(1.0, 2.0), (1.0, -1.0), (0.0, 0.5)])
def test_uphill_and_past_the_minimum_is_no_descent(start: float, stop: float) -> None:
    with pytest.raises(ValueError, match=f"does not lead from {start:g} to {stop:g}"):
        descend(lambda x: x**2 / 2, start, stop, steps=7)


@by_commitment
def test_no_time_passes_where_nothing_is_to_be_done(q: float) -> None:
    time, log_p = escape_course(math.log(0.7), q, 0.6)
    assert time.tolist() == [0, 0]
    assert log_p.exp().tolist() == pytest.approx([0.6, 0.6])


@pytest.mark.parametrize("log_p0", [0.0, 0.1, -math.inf, math.nan])
def test_a_start_that_is_no_probability_is_refused(log_p0: float) -> None:
    with pytest.raises(ValueError, match="log P"):
        escape_course(log_p0, 0.5)


def test_a_commitment_or_target_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="outside \\[0, 1\\]"):
        escape_course(-5.0, 1.1)
    with pytest.raises(ValueError, match="target"):
        escape_course(-5.0, 0.5, 1.0)


def test_a_gradient_below_the_range_of_floats_is_told() -> None:
    with pytest.raises(ValueError, match="does not lead"):
        escape_course(-800.0, 0.0)
    assert escape_course(-800.0, 1.0)[0][-1].item() == pytest.approx(800, rel=0.01)


@pytest.mark.parametrize("q", [0.02, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("noise", [0.01, 0.1, 0.4])
@pytest.mark.parametrize("part", [1e-3, 0.5, 0.9])
def test_fitting_time_is_the_integral_of_equation_16(q: float, noise: float, part: float) -> None:
    level = tsallis.contamination_level(noise, q)

    def pace(x: float) -> float:
        u = x * level
        return level / ((noise * u**-q - (1 - noise) * (1 - u) ** -q) * (1 - u) ** 2)

    expected = quad(pace, 0, part, epsabs=0, epsrel=1e-10)[0]
    assert fitting_time(part * level, noise, q) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("q", [0.25, 1.0])
def test_fitting_time_starts_out_as_its_leading_order(q: float) -> None:
    eta = 1e-9 * tsallis.contamination_level(0.2, q)
    assert fitting_time(eta, 0.2, q) == pytest.approx(tsallis.contamination_time(eta, 0.2, q), rel=0.02)


@by_commitment
def test_contamination_beyond_its_level_is_never_reached(q: float) -> None:
    assert fitting_time(max(tsallis.contamination_level(0.2, q), 1e-9), 0.2, q) == math.inf


@pytest.mark.parametrize(("eta", "noise", "q"), [(0.0, 0.1, 0.5), (1.0, 0.1, 0.5), (0.1, 0.5, 0.5), (0.1, 0.1, -1)])
def test_fitting_time_refuses_what_is_outside_its_range(eta: float, noise: float, q: float) -> None:
    with pytest.raises(ValueError, match="outside"):
        fitting_time(eta, noise, q)


@pytest.mark.parametrize("q", [0.0, 0.25, 0.5, 0.75, 1 - 1e-9, 1.0])
def test_the_gradient_of_the_loss_is_exact_however_small_p_is(q: float) -> None:
    log_p = float64(-700.0, -50.0, -20.0, -0.1, 0.0).requires_grad_()
    (gradient,) = torch.autograd.grad(tsallis.loss(log_p, q).sum(), log_p)
    torch.testing.assert_close(gradient, -torch.exp((1 - q) * log_p.detach()), rtol=1e-14, atol=0)
