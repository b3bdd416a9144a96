"""The estimators against exact expectations: a model so small that every group it can sample is enumerated."""

import itertools
import math
from functools import cache, partial

import pytest
import torch
from torch import Tensor

from components.objective import tsallis
from components.objective.estimators import garl, paft
from tests.components.objective.conftest import COMMITMENTS, INF, Estimator, by_commitment, by_form, float64, seeded


class Model:
    """A softmax over rationales and, for each, a softmax over three answers, the first of them gold.

    All logits are linear in four shared parameters, so both log-probabilities move with every parameter.
    """

    def __init__(self, seed: int, rationales: int, impossible: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.rationale_features, self.answer_features, self.theta = (
            torch.randn(shape, generator=generator, dtype=torch.float64)
            for shape in [(rationales, 4), (rationales, 3, 4), (4,)]
        )
        self.impossible = torch.arange(rationales) < impossible  # rationales after which the gold answer cannot come
        self.prior = self.log_prior(self.theta).exp()
        self.log_w = self.log_likelihood(self.theta)
        self.score = torch.func.jacrev(self.log_prior)(self.theta)  # [rationales, 4]
        self.path = torch.func.jacrev(self.log_likelihood)(self.theta)

    def log_prior(self, theta: Tensor) -> Tensor:
        return torch.log_softmax(self.rationale_features @ theta, -1)

    def log_likelihood(self, theta: Tensor) -> Tensor:
        return torch.log_softmax(self.answer_features @ theta, -1)[:, 0].masked_fill(self.impossible, -INF)

    def gradient(self, q: float) -> Tensor:
        """The true gradient of l_q."""
        theta = self.theta.clone().requires_grad_()
        log_p = (self.log_prior(theta) + self.log_likelihood(theta)).logsumexp(-1)
        return torch.autograd.grad(tsallis.loss(log_p, q), theta)[0]

    def expectation(self, size: int, estimator: Estimator) -> Tensor:
        """The mean of the gradient estimate over every group of a size, each multiset once with its probability."""
        groups = multisets(len(self.prior), size)
        counts = torch.nn.functional.one_hot(groups, len(self.prior)).sum(1).to(torch.float64)
        arrangements = math.lgamma(size + 1) - torch.lgamma(counts + 1).sum(-1)
        probability = torch.exp(arrangements + self.prior.log()[groups].sum(-1))
        torch.testing.assert_close(probability.sum().item(), 1.0)
        coefficients = estimator(self.log_w[groups])
        weighted = coefficients.score[..., None] * self.score[groups] + coefficients.path[..., None] * self.path[groups]
        return -probability @ weighted.mean(1)

    def bias(self, size: int, q: float, **form: bool) -> Tensor:
        return self.expectation(size, partial(garl, q=q, normalize=False, **form)) - self.gradient(q)


@cache
def multisets(values: int, size: int) -> Tensor:
    return torch.tensor(list(itertools.combinations_with_replacement(range(values), size)))


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(seed=0, rationales=6)


@pytest.fixture(scope="module")
def model_with_impossible_rationales() -> Model:
    return Model(seed=1, rationales=5, impossible=2)


@by_form
@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_rl_pole_is_unbiased_in_every_form(model: Model, size: int, form: dict[str, bool]) -> None:
    torch.testing.assert_close(model.bias(size, 0.0, **form), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-14)


def test_rl_pole_is_unbiased_from_a_single_rollout(model: Model) -> None:
    bias = model.bias(1, 0.0, baseline=False)
    torch.testing.assert_close(bias, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-14)


@by_form
def test_rl_pole_is_unbiased_when_weights_can_be_zero(
    model_with_impossible_rationales: Model, form: dict[str, bool]
) -> None:
    bias = model_with_impossible_rationales.bias(3, 0.0, **form)
    torch.testing.assert_close(bias, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-14)


@by_commitment
@pytest.mark.parametrize("debias", [False, True])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_leave_one_out_baseline_changes_no_expectation(
    model: Model, model_with_impossible_rationales: Model, q: float, debias: bool, size: int
) -> None:
    for each in (model, model_with_impossible_rationales):
        without, with_baseline = (each.bias(size, q, baseline=on, debias=debias) for on in (False, True))
        torch.testing.assert_close(with_baseline, without, rtol=0, atol=1e-13)


@pytest.mark.parametrize("q", [0.25, 0.5, 0.75, 1.0])
def test_bias_has_the_leading_coefficient_of_the_paper(q: float) -> None:
    model = Model(seed=1, rationales=4)
    w = model.log_w.exp()
    success = model.prior @ w
    g = -w[:, None] * (model.score + model.path)
    variance = model.prior @ (w - success) ** 2
    covariance = (model.prior * (w - success)) @ (g - model.prior @ g)
    expected = q / success ** (q + 1) * ((q + 1) / 2 * model.gradient(1.0) * variance - covariance)

    # Richardson: M * bias = coefficient + O(1/M), and twice its value at 2M less that at M leaves O(1/M^2).
    measured = 2 * 48 * model.bias(48, q, baseline=False) - 24 * model.bias(24, q, baseline=False)
    assert (measured - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("q", [0.25, 0.5, 0.75, 1.0])
def test_bias_falls_as_one_over_m_and_debiased_as_its_square(q: float) -> None:
    model = Model(seed=1, rationales=4)
    plug_in, debiased = (
        model.bias(16, q, debias=debias).norm() / model.bias(32, q, debias=debias).norm() for debias in (False, True)
    )
    assert plug_in.item() == pytest.approx(2, abs=0.2)
    assert debiased.item() == pytest.approx(4, abs=0.6)


def test_bias_grows_with_commitment_and_debiasing_removes_most_of_it() -> None:
    model = Model(seed=44, rationales=6)
    assert (model.prior @ model.log_w.exp()).item() == pytest.approx(0.143, abs=1e-3)
    plug_in, debiased = (
        [(model.bias(8, q, debias=debias).norm() / model.gradient(q).norm()).item() for q in COMMITMENTS]
        for debias in (False, True)
    )
    assert plug_in == pytest.approx([0, 0.055, 0.103, 0.147, 0.187], abs=1e-3)
    assert debiased == pytest.approx([0, 0.004, 0.007, 0.011, 0.016], abs=1e-3)


@by_commitment
def test_paft_given_the_group_is_plug_in_garl_exactly(q: float) -> None:
    w = float64(0.1, 0.2, 0.3)
    for draws in (2, 3):
        # So many groups that every outcome of the draw is among them, then weighted by its exact probability.
        coefficient = paft(w.log().expand(2000, 3), q, draws=draws, normalize=False, generator=seeded(0)).path.unique(
            dim=0
        )
        counts = coefficient * draws / (3 * w.mean() ** (1 - q))
        torch.testing.assert_close(counts, counts.round())
        assert len(counts) == math.comb(3 + draws - 1, draws)
        log_probability = math.lgamma(draws + 1) - torch.lgamma(counts + 1).sum(-1) + counts @ (w / w.sum()).log()
        expectation = log_probability.exp() @ coefficient
        torch.testing.assert_close(expectation, garl(w.log()[None], q, baseline=False, normalize=False).path[0])


@by_commitment
@pytest.mark.parametrize("draws", [None, 2])
def test_paft_averages_to_plug_in_garl(q: float, draws: int | None) -> None:
    log_w = float64(-1.0, -9.0, -2.5, -2.0).expand(20_000, 4)
    sample = paft(log_w, q, draws=draws, generator=seeded(1)).path
    error = (sample.mean(0) - garl(log_w[:1], q, baseline=False).path[0]).abs()
    assert (error < 5 * sample.std(0) / math.sqrt(len(sample))).all()
