"""The estimators against exact expectations: a model so small that every group it can sample is enumerated."""

import itertools
import math
from functools import cache, partial

import pytest
import torch
from torch import Tensor

from components.objective import estimators, tsallis
from components.objective.commitment import ATTENUATION, adaptive
from components.objective.estimators import Coefficients, each_commitment, garl, garl_each, paft
from components.objective.rewards import dr_grpo, grpo, maxrl, rloo, star
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

    def log_answers(self, theta: Tensor) -> Tensor:
        """[rationales, 3]."""
        return torch.log_softmax(self.answer_features @ theta, -1)

    def log_likelihood(self, theta: Tensor) -> Tensor:
        return self.log_answers(theta)[:, 0].masked_fill(self.impossible, -INF)

    @property
    def success(self) -> float:
        """P."""
        return (self.prior @ self.log_w.exp()).item()

    def gradient(self, q: float) -> Tensor:
        """The true gradient of l_q."""
        theta = self.theta.clone().requires_grad_()
        log_p = (self.log_prior(theta) + self.log_likelihood(theta)).logsumexp(-1)
        return torch.autograd.grad(tsallis.loss(log_p, q), theta)[0]

    def expectation(self, size: int, estimator: Estimator) -> Tensor:
        """The mean of the gradient estimate over every group of a size."""
        groups, probability = every_group(self.prior, size)
        return mean_estimate(estimator(self.log_w[groups]), self.score[groups], self.path[groups], probability)

    def bias(self, size: int, q: float, **form: bool) -> Tensor:
        return self.expectation(size, partial(garl, q=q, normalize=False, **form)) - self.gradient(q)


class SampledAnswers:
    """A model's rationales with every answer behind them that can be sampled, [3 * rationales]; each first is right."""

    def __init__(self, model: Model) -> None:
        joint = model.log_prior(model.theta)[:, None] + model.log_answers(model.theta)
        self.prior = joint.exp().flatten()
        self.score = model.score.repeat_interleave(3, 0)
        self.path = torch.func.jacrev(model.log_answers)(model.theta).flatten(0, 1)
        self.reward = torch.tensor([1, 0, 0]).repeat(len(joint))

    def ascent(self, size: int, estimator: Estimator) -> Tensor:
        """The mean, over every group of a size, of the direction that the estimator moves in: minus the estimate."""
        groups, probability = every_group(self.prior, size)
        return -mean_estimate(estimator(self.reward[groups]), self.score[groups], self.path[groups], probability)


def every_group(prior: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Every group of a size, [groups, size], each multiset once, and its probability, [groups]."""
    groups = multisets(len(prior), size)
    counts = torch.nn.functional.one_hot(groups, len(prior)).sum(1).to(torch.float64)
    arrangements = math.lgamma(size + 1) - torch.lgamma(counts + 1).sum(-1)
    probability = torch.exp(arrangements + prior.log()[groups].sum(-1))
    torch.testing.assert_close(probability.sum().item(), 1.0)
    return groups, probability


def mean_estimate(coefficients: Coefficients, score: Tensor, path: Tensor, probability: Tensor) -> Tensor:
    """The mean gradient estimate over groups; score and path: grad log p of rationale and answer, [groups, M, 4]."""
    weighted = coefficients.score[..., None] * score + coefficients.path[..., None] * path
    return -probability @ weighted.mean(1)


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


@pytest.mark.parametrize(("lucky", "gain"), [(False, 0.75), (True, 0.81)], ids=["warm", "one rationale in fifty"])
def test_a_jackknife_pays_in_a_batch_and_a_second_one_does_not(lucky: bool, gain: float) -> None:
    """Root mean square error of the mean over 16 groups of 8, at q = 1: the second order's bias is paid in variance."""
    model, batch = Model(seed=44, rationales=6), 16
    if lucky:  # all likelihoods but that of the rarest rationale are 3,000 times lower
        model.log_w = model.log_w - 8 * (model.prior != model.prior.min())
    groups, probability = every_group(model.prior, 8)
    likelihood = model.prior * model.log_w.exp()
    gradient = -likelihood @ (model.score + model.path) / likelihood.sum()

    def error(order: int) -> float:
        estimates = jackknife(model, groups, order)
        mean = probability @ estimates
        variance = probability @ ((estimates - mean) ** 2).sum(-1)
        return ((mean - gradient).square().sum() + variance / batch).sqrt().item()

    plug_in, first, second = (error(order) for order in range(3))
    assert first < gain * plug_in
    assert second > 0.9 * first


def jackknife(model: Model, groups: Tensor, order: int) -> Tensor:
    """The gradient estimate at q = 1 of each group, [groups, 4], in which the bias is of order M^-(order + 1).

    Generalised jackknife of Schucany, Gray and Owen (1971): sum over k of (-1)^k (M - k)^order / (k! (order - k)!)
    times the mean plug-in of the groups without k of their rollouts.
    """
    size, total = groups.shape[-1], torch.zeros(len(groups), 4, dtype=torch.float64)
    for k in range(order + 1):
        rest = [groups[:, kept] for kept in itertools.combinations(range(size), size - k)]
        factor = (-1) ** k * (size - k) ** order / (math.factorial(k) * math.factorial(order - k))
        total += factor * sum(map(partial(plug_in, model), rest)) / len(rest)
    return total


def plug_in(model: Model, groups: Tensor) -> Tensor:
    """Plug-in GARL's gradient estimate at q = 1 of each group, [groups, 4]."""
    path = garl(model.log_w[groups], 1.0, baseline=False, normalize=False).path
    return -(path[..., None] * (model.score + model.path)[groups]).mean(1)


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


# Only the score


@pytest.mark.parametrize("form", [{"baseline": False}, {}, {"debias": True}], ids=["plug-in", "baseline", "debiased"])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_scores_alone_are_the_gradient_that_goes_through_the_rationales(
    model: Model, model_with_impossible_rationales: Model, size: int, form: dict[str, bool]
) -> None:
    """At the RL pole: the gradient of P where p(y* given z) is a reward that does not move."""
    for each in (model, model_with_impossible_rationales):
        through_rationales = -(each.prior * each.log_w.exp()) @ each.score
        expectation = each.expectation(size, lambda log_w: garl(log_w, 0.0, **form).score_only)
        torch.testing.assert_close(expectation, through_rationales, rtol=0, atol=1e-14)
        assert (expectation - each.gradient(0.0)).norm() > 0.1 * each.gradient(0.0).norm()


@pytest.mark.parametrize("q", [0.5, 1.0])
def test_scores_alone_are_amplified_as_the_whole_is(q: float) -> None:
    model = Model(seed=1, rationales=4)
    through_rationales = -(model.prior * model.log_w.exp()) @ model.score / model.success**q

    def bias(size: int) -> Tensor:
        estimate = model.expectation(size, lambda log_w: garl(log_w, q, normalize=False).score_only)
        return estimate - through_rationales

    assert (bias(16).norm() / bias(32).norm()).item() == pytest.approx(2, abs=0.2)


# A commitment for each example


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_own_commitments_average_to_plug_in_garl_at_the_commitments_that_the_others_have(
    model: Model, model_with_impossible_rationales: Model, size: int, baseline: bool
) -> None:
    for each in (model, model_with_impossible_rationales):
        wanted = torch.zeros(4, dtype=torch.float64)
        for others, probability in zip(*every_group(each.prior, size - 1), strict=True):
            groups = torch.cat([torch.arange(len(each.prior))[:, None], others.repeat(len(each.prior), 1)], 1)
            q = each_commitment(each.log_w[groups])[0, 0].item()
            assert q == pytest.approx(adaptive(each.log_w[others].exp().mean().log().item()), abs=1e-12)
            first = garl(each.log_w[groups], q, baseline=False, normalize=False).path[:, 0]
            wanted -= probability * (each.prior * first) @ (each.score + each.path)
        found = each.expectation(size, partial(garl_each, baseline=baseline, normalize=False))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)


def bias_of_own_commitments(model: Model, size: int) -> Tensor:
    """Against the gradient at q(P)."""
    expectation = model.expectation(size, partial(garl_each, normalize=False))
    return expectation - model.gradient(each_commitment(torch.full((1, 2), math.log(model.success)))[0, 0].item())


@pytest.mark.parametrize(("seed", "success"), [(30, 0.020), (38, 0.067), (43, 0.051)])
def test_bias_of_own_commitments_falls_as_one_over_m_while_an_example_is_cold(seed: int, success: float) -> None:
    model = Model(seed, rationales=4)
    assert model.success == pytest.approx(success, abs=1e-3)
    assert success < ATTENUATION
    ratio = bias_of_own_commitments(model, 16).norm() / bias_of_own_commitments(model, 32).norm()
    assert ratio.item() == pytest.approx(2, abs=0.1)


def test_bias_of_own_commitments_vanishes_where_an_example_is_warm() -> None:
    """There q is 0 in all groups but a few."""
    model = Model(seed=25, rationales=4)
    assert model.success == pytest.approx(0.495, abs=1e-3)
    assert bias_of_own_commitments(model, 16).norm() < 1e-6 * model.gradient(0.0).norm()


def test_bias_of_own_commitments_falls_as_a_root_at_the_kink(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(seed=52, rationales=4)
    monkeypatch.setattr(estimators, "ATTENUATION", model.success)
    ratio = bias_of_own_commitments(model, 16).norm() / bias_of_own_commitments(model, 32).norm()
    assert ratio.item() == pytest.approx(math.sqrt(2), abs=0.1)


# Rewards of sampled answers


@pytest.fixture(scope="module")
def rationales() -> Model:
    return Model(seed=2, rationales=3)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_rewards_of_sampled_answers_ascend_what_they_should(rationales: Model, size: int) -> None:
    """RLOO P itself, Dr. GRPO a share of it, MaxRL and STaR log P but for the groups that no right answer is in."""
    answers, wrong = SampledAnswers(rationales), 1 - rationales.success
    assert (answers.prior @ answers.reward.double()).item() == pytest.approx(rationales.success)
    of_p, of_log_p = -rationales.gradient(0.0), -rationales.gradient(1.0)
    ascents = {
        rloo: of_p,
        dr_grpo: (1 - 1 / size) * of_p,
        maxrl: (1 - wrong ** (size - 1)) * of_log_p,
        star: (1 - wrong**size) * of_log_p,
    }
    for estimator, ascent in ascents.items():
        torch.testing.assert_close(answers.ascent(size, estimator), ascent, rtol=0, atol=1e-13)


def test_star_of_a_single_rollout_ascends_p(rationales: Model) -> None:
    ascent = SampledAnswers(rationales).ascent(1, star)
    torch.testing.assert_close(ascent, -rationales.gradient(0.0), rtol=0, atol=1e-14)


def test_grpo_of_pairs_ascends_p(rationales: Model) -> None:
    """Where one of two is right the advantages are 1/2 over a standard deviation of the root of 1/2."""
    ascent = SampledAnswers(rationales).ascent(2, grpo)
    torch.testing.assert_close(ascent, -0.5 / (math.sqrt(0.5) + 1e-4) * rationales.gradient(0.0), rtol=0, atol=1e-14)


def test_more_rollouts_bring_maxrl_to_maximum_likelihood(rationales: Model) -> None:
    answers, of_log_p = SampledAnswers(rationales), -rationales.gradient(1.0)
    gaps = [((answers.ascent(size, maxrl) - of_log_p).norm() / of_log_p.norm()).item() for size in (2, 4, 6)]
    assert gaps == pytest.approx([(1 - rationales.success) ** power for power in (1, 3, 5)])
