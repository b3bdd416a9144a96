"""Estimators on the rewards of sampled answers: GRPO and its kin, the peers that GARL and PAFT are compared with.

They see of an answer only whether it is right, so a group without a right one carries no gradient in any of them. In
the form of `estimators`, score and path coefficients are the same advantage, on the sampled rationale and answer.

With P the chance of a right answer and M rollouts, they ascend on average (tests enumerate it)

    RLOO      grad P
    Dr. GRPO  (1 - 1/M) grad P
    MaxRL     (1 - (1 - P)^(M-1)) grad log P
    STaR      (1 - (1 - P)^M) grad log P

Since grad log P = sum over k >= 0 of (1 - P)^k grad P, MaxRL is maximum likelihood cut off after M - 1 of these terms,
and STaR after M.

Sources: GRPO is Shao et al. (2024), https://arxiv.org/abs/2402.03300; Dr. GRPO Liu et al. (2025),
https://arxiv.org/abs/2503.20783; RLOO Ahmadian et al. (2024), https://arxiv.org/abs/2402.14740; MaxRL Tajwar et al.
(2026), https://arxiv.org/abs/2602.02710, Algorithm 1; STaR Zelikman et al. (2022), https://arxiv.org/abs/2203.14465.
"""

import torch
from torch import Tensor

from components.objective.estimators import Coefficients, as_groups, check_pairs

# TRL's GRPOTrainer adds it to the standard deviation of a group's rewards.
GRPO_EPSILON = 1e-4


def grpo(reward: Tensor) -> Coefficients:
    """Group-relative policy optimisation: both coefficients are (r_m - mean r) / (std r + 1e-4).

    The paper writes std without saying of what; this is the sample standard deviation (over M - 1), as in TRL's
    GRPOTrainer, whose epsilon it also takes.

    Args:
        reward: [groups, M], of any type that converts to float64.

    Returns:
        Coefficients, for the sampled answer; exactly zero where all rewards of a group are equal.

    Raises:
        ValueError: a reward NaN or infinite; not [groups, M]; M = 1.
    """
    reward = _rewards(reward, "GRPO's advantage")
    return _both(_centred(reward) / (_from_first(reward).std(-1, keepdim=True) + GRPO_EPSILON))


def dr_grpo(reward: Tensor) -> Coefficients:
    """GRPO without its division by the standard deviation: r_m - mean r. Arguments, result and errors as in grpo.

    Dr. GRPO's other change, to sum over an answer's tokens instead of averaging, holds for all estimators here.
    """
    return _both(_centred(_rewards(reward, "Dr. GRPO's advantage")))


def rloo(reward: Tensor) -> Coefficients:
    """REINFORCE with a leave-one-out baseline: r_m minus the mean of the others. Unbiased.

    Arguments, result and errors as in grpo.
    """
    reward = _rewards(reward, "RLOO's baseline")
    size = reward.shape[-1]
    return _both(_centred(reward) * size / (size - 1))


def maxrl(reward: Tensor) -> Coefficients:
    """Maximum-likelihood RL: (r_m - mean r) / mean r, and zero for a group without a right answer.

    Args:
        reward: [groups, M], 1 for a right answer and 0 for a wrong one, as the paper has it.

    Returns:
        Coefficients, for the sampled answer.

    Raises:
        ValueError: a reward other than 0 and 1; not [groups, M]; M = 1.
    """
    reward = _rewards(reward, "MaxRL's advantage")
    return _both(_per_success(_centred(reward), reward, "MaxRL"))


def star(reward: Tensor) -> Coefficients:
    """EM by acceptance: the mean over right answers alone, r_m / mean r, and zero for a group without one.

    STaR keeps rationales whose answer is right and fine-tunes on them, each problem counting alike; this is one such
    update a step, from M samples of each problem and without STaR's hints. Arguments, result and errors as in maxrl,
    but for M = 1, which it takes.
    """
    reward = _finite(reward)
    return _both(_per_success(reward, reward, "STaR"))


def _rewards(reward: Tensor, what: str) -> Tensor:
    reward = _finite(reward)
    check_pairs(reward, what, "choose another method")
    return reward


def _finite(reward: Tensor) -> Tensor:
    reward = as_groups(reward, "reward")
    if not bool(reward.isfinite().all()):
        raise ValueError("reward holds NaN or an infinite value; rewards are finite numbers, such as 0 and 1.")
    return reward


def _from_first(reward: Tensor) -> Tensor:
    """Less the group's first, which changes nothing but rounding: equal rewards become exact zeros."""
    return reward - reward[:, :1]


def _centred(reward: Tensor) -> Tensor:
    shifted = _from_first(reward)
    return shifted - shifted.mean(-1, keepdim=True)


def _per_success(values: Tensor, reward: Tensor, name: str) -> Tensor:
    if not bool(((reward == 0) | (reward == 1)).all()):
        raise ValueError(f"a reward is neither 0 nor 1; {name} is defined for right and wrong answers alone.")
    share = reward.mean(-1, keepdim=True)
    return torch.where(share > 0, values / share, 0)


def _both(advantage: Tensor) -> Coefficients:
    return Coefficients(advantage, advantage)
