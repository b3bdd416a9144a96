"""Gradient estimators: a group of rollouts in, two numbers per rollout out.

Every estimator is a pure function from [groups, M] log-likelihood weights (or rewards) to Coefficients, and training is
one weighted log-likelihood, the same for all of them:

    gradient estimate = - mean over m of [ score_m * grad log p(z_m given x*) + path_m * grad log p(y given x*, z_m) ]

with y the gold answer y* for GARL and PAFT here, and the sampled answer for the estimators of `rewards`.

log w_m = log p(y* given x*, z_m), in nats, is a sum over answer tokens: -800 is common. So every coefficient is the
exponential of a difference of logs, in float64, and one convention covers the rest: a weight of exactly zero
(log w = -inf) contributes nothing, and neither does a mean of nothing but such weights: 0 / 0^q = 0 at every q.

Sources: Lin & Ie (2026), https://arxiv.org/abs/2604.25907v1, whose equations and algorithms are quoted by number; the
debiased form is the delete-one jackknife (Quenouille, 1956, Biometrika 43), which Nowozin, "Debiasing Evidence
Approximations" (ICLR 2018, https://openreview.net/forum?id=HyZoi-WRb), applies to the bounds of importance-weighted
autoencoders, q = 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from components.objective.commitment import ATTENUATION
from components.objective.tsallis import check_commitment, check_log_weights


@dataclass(frozen=True)
class Coefficients:
    """What multiplies the two gradients of every rollout; [groups, M] each, float64, detached.

    score: a_m, on grad log p(z_m given x*), the rationale.
    path: b_m, on grad log p(y given x*, z_m), the answer.
    """

    score: Tensor
    path: Tensor

    @property
    def carries_gradient(self) -> Tensor:
        """[groups] bool: False where every coefficient is zero, so the group can be skipped (and should be counted)."""
        return ((self.score != 0) | (self.path != 0)).any(-1)

    @property
    def score_only(self) -> "Coefficients":
        """Without the answer's gradient, path = 0; an ablation.

        Of GARL that leaves RL with the likelihood of the gold answer as the reward: it follows the part of the gradient
        that goes through the rationales alone, E[score_m grad log p(z_m)], and teaches no rationale its answer.
        """
        return Coefficients(self.score, torch.zeros_like(self.path))

    def scaled(self, factor: float) -> "Coefficients":
        """Both times a factor, which rescales the step alone."""
        return Coefficients(self.score * factor, self.path * factor)


def garl(
    log_w: Tensor, q: float, *, baseline: bool = True, debias: bool = False, normalize: bool = True
) -> Coefficients:
    """Gradient-amplified RL: every rollout counts, amplified by w_bar^(-q) (equations 9 and 12, Algorithm 1).

    Plug-in: both coefficients are w_m / w_bar^q. Its bias, O(q / (M P^(q+1))), is that of a ratio of means.

    Debiased: a mean of plug-ins is g + c1 / M + c2 / M^2 + ..., and a group without one of its rollouts is a group of
    M - 1. So M times the plug-in less M - 1 times the mean of the M plug-ins without one rollout (the delete-one
    jackknife) is g - c2 / (M (M - 1)) + ... on average, and its parts in w_m collect to path_m = w_m [M w_bar^(-q) -
    sum over j != m of w_loo(j)^(-q)]. The series is short where many rollouts share the weight. Where one towers over
    the rest it is not: at q = 1 the jackknife gives that one 2 - 1/M times what the plug-in does, and takes 1 - 1/M of
    that from the others. Leaving out two rollouts as well removes c2 too, but costs about as much in variance as it
    gains at 16 groups a step (tests/components/objective/test_expectations.py), and is not offered.

    Args:
        log_w: [groups, M] log-likelihood weights, finite or -inf.
        q: the commitment.
        baseline: subtract w_loo(m)^(1-q), which rollout m does not influence, from its score: the same expectation, as
            a rule with less variance.
        debias: take the jackknife: bias O(M^-2) at no model cost, for some variance. Not in the paper. Coefficients can
            be negative, even on the answer: where one weight towers over the rest, the second-largest is pushed down.
        normalize: divide by M^q, as Algorithm 1 does; it only rescales the step.

    Returns:
        Coefficients; zero for a group whose weights are all zero.

    Raises:
        ValueError: q outside [0, 1]; log_w NaN, +inf or not [groups, M]; M = 1 with baseline or debias.
    """
    log_w = _log_weights(log_w, q)
    if baseline:
        check_pairs(log_w, "the leave-one-out baseline", "turn the baseline off")
    if debias:
        check_pairs(log_w, "debiased GARL", "turn debias off")
    size = log_w.shape[-1]
    path = _quotient(log_w, q, _log_mean(log_w))
    if debias:
        without_j = _quotient(log_w[:, :, None], q, _leave_one_out_log_mean(log_w)[:, None, :])  # [groups, m, j]
        path = size * path - without_j.masked_fill(_diagonal(log_w), 0).sum(-1)
    score = path
    if baseline:
        log_loo = _leave_one_out_log_mean(log_w)
        score = path - _quotient(log_loo, q, log_loo)
    return Coefficients(score, path).scaled(size**-q if normalize else 1.0)


def garl_each(log_w: Tensor, *, baseline: bool = True, normalize: bool = True) -> Coefficients:
    """GARL where each example has a commitment of its own, q(P) of `commitment.adaptive`; not in the paper.

    The others of its group decide rollout m's commitment, q_m = q(w_loo(m)): path_m = w_m / w_bar^(q_m), and score_m =
    path_m - w_loo(m)^(1 - q_m) with the baseline.

    Its expectation: given the others, q_m is a number. So the baseline, which they decide too, is a constant and
    changes no expectation, E[grad log p(z_m)] being 0; and rollout m's part is that of plug-in GARL at q_m. All M parts
    are alike, hence the expectation is the mean, over M - 1 rollouts, of plug-in GARL's last part at the q that these
    have. Both w_bar and w_loo(m) lie around P with a variance of O(1/M), so the bias against the gradient at q(P) is
    O(1/M), as that of plug-in GARL; but O(M^(-1/2)) at P = ATTENUATION itself, where q(P) has its kink.

    Args:
        log_w: [groups, M] log-likelihood weights, finite or -inf.
        baseline: as in garl.
        normalize: divide by M, as garl does at q = 1; the same for all examples, so that it only rescales the step.

    Returns:
        Coefficients; zero for a group whose weights are all zero.

    Raises:
        ValueError: log_w NaN, +inf or not [groups, M]; M = 1.
    """
    log_w = _log_weights(log_w)
    check_pairs(log_w, "a commitment for each example", "fix q")
    log_loo = _leave_one_out_log_mean(log_w)
    q = _adaptive(log_loo)
    path = _quotient(log_w, q, _log_mean(log_w))
    score = path - _quotient(log_loo, q, log_loo) if baseline else path
    return Coefficients(score, path).scaled(1 / log_w.shape[-1] if normalize else 1.0)


def each_commitment(log_w: Tensor) -> Tensor:
    """q_m of garl_each, [groups, M]; arguments and errors as there."""
    return _adaptive(leave_one_out_log_mean(log_w))


def paft(
    log_w: Tensor,
    q: float,
    *,
    draws: int | None = None,
    normalize: bool = True,
    generator: torch.Generator | None = None,
) -> Coefficients:
    """Posterior-attenuated fine-tuning: resample by likelihood, attenuate by w_bar^(1-q) (equation 14, Algorithm 2).

    Both coefficients are w_bar^(1-q) M n_m / K, n_m the times rollout m was drawn in K draws with replacement with
    probability w_m / sum w. Given the group, the expectation over draws is plug-in GARL. A rollout that was not drawn
    has zero coefficients and needs no gradient pass.

    Args:
        log_w: [groups, M] log-likelihood weights, finite or -inf.
        q: the commitment.
        draws: K; None draws M.
        normalize: divide by M^q, as Algorithm 2 does; it only rescales the step.
        generator: the source of the draws, on log_w's device; None takes torch's global one.

    Returns:
        Coefficients; zero for a group whose weights are all zero.

    Raises:
        ValueError: q outside [0, 1]; log_w NaN, +inf or not [groups, M]; draws below 1.
    """
    log_w = _log_weights(log_w, q)
    size = log_w.shape[-1]
    draws = size if draws is None else draws
    if draws < 1:
        raise ValueError(f"draws = {draws}: PAFT resamples at least one rollout of each group; raise draws.")

    # A group without weight has nothing to draw from; its attenuation of zero silences whatever is drawn.
    posterior = torch.softmax(log_w.masked_fill(_weightless(log_w), 0), dim=-1)
    drawn = torch.multinomial(posterior, draws, replacement=True, generator=generator)
    counts = torch.zeros_like(log_w).scatter_add_(-1, drawn, torch.ones_like(drawn, dtype=log_w.dtype))
    log_w_bar = _log_mean(log_w)
    coefficient = _quotient(log_w_bar, q, log_w_bar) * size * counts / draws
    return Coefficients(coefficient, coefficient).scaled(size**-q if normalize else 1.0)


def rb_rloo(log_w: Tensor) -> Coefficients:
    """Rao-Blackwellised REINFORCE with leave-one-out baseline: GARL at q = 0 (Proposition D.2).

    log_w, [groups, M], and errors as in garl.
    """
    return garl(log_w, 0.0)


# The same estimator under the name it was published by, https://arxiv.org/abs/2505.21493.
verifree = rb_rloo


def iwae(log_w: Tensor) -> Coefficients:
    """The importance-weighted autoencoder's gradient, w_m / w_bar: plug-in GARL at q = 1 (Proposition D.2).

    log_w, [groups, M], and errors as in garl.
    """
    return garl(log_w, 1.0, baseline=False, normalize=False)


def em(log_w: Tensor, *, draws: int | None = None, generator: torch.Generator | None = None) -> Coefficients:
    """Monte Carlo EM as in TRICE, M n_m / K: PAFT at q = 1 (Proposition D.2).

    log_w, [groups, M], draws, generator and errors as in paft.
    """
    return paft(log_w, 1.0, draws=draws, normalize=False, generator=generator)


def log_mean(log_w: Tensor) -> Tensor:
    """log w_bar, the log of the Monte Carlo estimate of P: [groups] from [groups, M]; -inf for a weightless group."""
    return _log_mean(_log_weights(log_w)).squeeze(-1)


def leave_one_out_log_mean(log_w: Tensor) -> Tensor:
    """log w_loo(m), the log mean of the group without rollout m: [groups, M].

    Raises:
        ValueError: log_w NaN, +inf or not [groups, M]; M = 1.
    """
    log_w = _log_weights(log_w)
    check_pairs(log_w, "a leave-one-out mean", "do without it")
    return _leave_one_out_log_mean(log_w)


def effective_sample_size(log_w: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2, how many rollouts share the weight: [groups], from 1 to M; 0 for a weightless group."""
    log_w = _log_weights(log_w)
    size = torch.exp(2 * log_w.logsumexp(-1) - (2 * log_w).logsumexp(-1))
    return size.masked_fill(_weightless(log_w).squeeze(-1), 0)


def effective_reward(log_w: Tensor, q: float) -> Tensor:
    """w_m / (M w_bar)^q, [groups, M] in [0, 1]: the reward that plug-in GARL gives a rollout (Section 6.1.1)."""
    return garl(log_w, q, baseline=False).path


def amplification_bias(q: float, effective_samples: Sequence[float], size: int) -> float:
    """How far w_bar^(-q) lies above P^(-q) on average, relative to it: q (q + 1) / 2 * Var(w) / (M P^2).

    To first order in 1/M, from E f(w_bar) - f(P) = f''(P) Var(w_bar) / 2. Of the plug-in's bias it is the part that
    the amplification alone brings. A group of effective sample size ess shows Var(w) = (M / ess - 1) P^2.

    Args:
        q: the commitment.
        effective_samples: ess of some groups (effective_sample_size), each from 1 to M; at least one.
        size: M.

    Returns:
        The mean over the groups.
    """
    check_commitment(q)
    return q * (q + 1) / 2 * sum(1 / ess - 1 / size for ess in effective_samples) / len(effective_samples)


def as_groups(values: Tensor, name: str) -> Tensor:
    """Values of any type, [groups, M], as float64 without a graph; a ValueError names those of another shape."""
    values = values.detach().to(torch.float64)
    if values.ndim != 2 or values.shape[-1] == 0:
        raise ValueError(f"{name} has shape {list(values.shape)}; give [groups, M] with at least one rollout a group.")
    return values


def check_pairs(values: Tensor, what: str, cure: str) -> None:
    """Raise a ValueError for groups of a single rollout, [groups, 1]."""
    if values.shape[-1] == 1:
        raise ValueError(f"M = 1: {what} compares rollouts, so raise the group size to 2 or more, or {cure}.")


def _log_weights(log_w: Tensor, q: float = 0.0) -> Tensor:
    check_commitment(q)
    log_w = as_groups(log_w, "log_w")
    check_log_weights(log_w, "log_w")
    return log_w


def _quotient(log_a: Tensor, q: Tensor | float, log_b: Tensor) -> Tensor:
    """a / b^q from logs, 0 where a = 0: the one place where 0 / 0^q could arise."""
    return torch.exp(log_a - q * log_b).masked_fill(log_a == -math.inf, 0)


def _adaptive(log_p: Tensor) -> Tensor:
    """As commitment.adaptive, of tensors; 1 at log P = -inf."""
    return 1 - math.log(ATTENUATION) / log_p.clamp(max=math.log(ATTENUATION))


def _log_mean(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(-1, keepdim=True) - math.log(log_w.shape[-1])


def _leave_one_out_log_mean(log_w: Tensor) -> Tensor:
    # A sum over the others, not the total minus one's own weight: that cancels where one rollout has all the weight.
    others = log_w[:, None, :].masked_fill(_diagonal(log_w), -math.inf)
    return others.logsumexp(-1) - math.log(log_w.shape[-1] - 1)


def _diagonal(log_w: Tensor) -> Tensor:
    """[M, M] bool, True for a rollout with itself."""
    return torch.eye(log_w.shape[-1], dtype=torch.bool, device=log_w.device)


def _weightless(log_w: Tensor) -> Tensor:
    """[groups, 1] bool: every weight of the group is zero."""
    return (log_w == -math.inf).all(-1, keepdim=True)
