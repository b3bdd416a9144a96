"""Importance weights against values that can be computed by hand, and against a model that can be enumerated."""

import math

import pytest
import torch

from components.objective.estimators import Coefficients, garl, paft
from components.objective.importance import bounded, reweigh

LOG_2, LOG_3, LOG_4 = math.log(2), math.log(3), math.log(4)

# Six rationales: the trainer's and the sampler's probability of each, and p(y given x, z).
TRAINER = torch.tensor([0.05, 0.30, 0.25, 0.20, 0.15, 0.05], dtype=torch.float64)
SAMPLER = torch.tensor([0.15, 0.20, 0.15, 0.20, 0.10, 0.20], dtype=torch.float64)
W = torch.tensor([0.9, 0.02, 0.3, 0.001, 0.1, 0.5], dtype=torch.float64)


def test_truncated_ratios_stop_at_the_bound() -> None:
    log_ratio = torch.tensor([-LOG_3, 0.0, LOG_2, LOG_4], dtype=torch.float64)
    expected = torch.tensor([1 / 3, 1, 2, 2], dtype=torch.float64)
    torch.testing.assert_close(bounded(log_ratio, "truncated", 2.0).exp(), expected)


def test_masked_ratios_vanish_above_the_bound() -> None:
    log_ratio = torch.tensor([-LOG_3, 0.0, LOG_3, LOG_4], dtype=torch.float64)
    expected = torch.tensor([1 / 3, 1, 3, 0], dtype=torch.float64)
    torch.testing.assert_close(bounded(log_ratio, "masked", 3.5).exp(), expected)


def test_bounds_below_one_and_undefined_ratios_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bound of 0\.5"):
        bounded(torch.zeros(1), "truncated", 0.5)
    with pytest.raises(ValueError, match="NaN"):
        bounded(torch.tensor([torch.nan]), "masked", 2.0)


def test_the_baseline_is_weighed_too() -> None:
    """At q = 0 score is w_m minus the other's w; with r = (2, 1/2) and w = (0.1, 0.4), r w = (0.2, 0.2)."""
    log_w = torch.tensor([[0.1, 0.4]], dtype=torch.float64).log()
    log_r = torch.tensor([[LOG_2, -LOG_2]], dtype=torch.float64)
    weighed = reweigh(garl(log_w + log_r, 0.0), log_r)
    torch.testing.assert_close(weighed.path, torch.tensor([[0.2, 0.2]], dtype=torch.float64))
    torch.testing.assert_close(weighed.score, torch.tensor([[0.2 - 2 * 0.2, 0.2 - 0.5 * 0.2]], dtype=torch.float64))


def test_masked_rollouts_carry_nothing() -> None:
    log_w = torch.tensor([[0.1, 0.4, 0.3]], dtype=torch.float64).log()
    log_r = torch.tensor([[0.0, -torch.inf, 0.0]], dtype=torch.float64)
    weighed = reweigh(garl(log_w + log_r, 0.75), log_r)
    assert weighed.score[0, 1] == weighed.path[0, 1] == 0
    assert weighed.path[0, 0] > 0


@pytest.mark.parametrize("q", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("estimator", ["garl", "garl-plugin", "garl-debiased", "paft"])
def test_estimates_from_another_sampler_converge_to_the_trainers_gradient(estimator: str, q: float) -> None:
    """The gradient of -log_q P by the logits of p(z), from a large group; without weights the same group misses it."""
    generator = torch.Generator().manual_seed(0)
    z = torch.multinomial(SAMPLER, 80_000, replacement=True, generator=generator).view(800, 100)
    log_w, log_r = W.log()[z], (TRAINER / SAMPLER).log()[z]
    weighed = coefficients(estimator, log_w + log_r, q, generator)
    wanted = exact_gradient(q)
    estimate = score_gradient(reweigh(weighed, log_r), z)
    assert distance(estimate, wanted) < 0.05
    assert distance(score_gradient(coefficients(estimator, log_w, q, generator), z), wanted) > 0.15


def coefficients(estimator: str, log_w: torch.Tensor, q: float, generator: torch.Generator) -> Coefficients:
    if estimator == "paft":
        return paft(log_w, q, normalize=False, generator=generator)
    return garl(log_w, q, baseline=estimator == "garl", debias=estimator == "garl-debiased", normalize=False)


def score_gradient(weighed: Coefficients, z: torch.Tensor) -> torch.Tensor:
    """Minus the mean of score * grad log p(z), by the logits behind TRAINER: the indicator of z minus TRAINER."""
    by_rationale = torch.zeros_like(TRAINER).index_add(0, z.flatten(), weighed.score.flatten())
    return -(by_rationale - by_rationale.sum() * TRAINER) / z.numel()


def exact_gradient(q: float) -> torch.Tensor:
    logits = TRAINER.log().requires_grad_()
    p = (logits.softmax(0) * W).sum()
    loss = -p.log() if q == 1 else -(p ** (1 - q) - 1) / (1 - q)
    return torch.autograd.grad(loss, logits)[0]


def distance(estimate: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((estimate - wanted).norm() / wanted.norm())
