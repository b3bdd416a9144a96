"""The coefficients that a step's estimator gives one group: by its rewards, or by its log-likelihood weights."""

import torch
from torch import Tensor

from components.config import Arm, Method, TrainSettings
from components.objective import estimators, rewards
from components.objective.estimators import Coefficients
from components.training.turn import Turn

BY_REWARD = {
    Method.GRPO: rewards.grpo,
    Method.DR_GRPO: rewards.dr_grpo,
    Method.RLOO: rewards.rloo,
    Method.MAXRL: rewards.maxrl,
    Method.STAR: rewards.star,
}


def by_rewards(turn: Turn, reward: Tensor) -> Coefficients:
    """The coefficients of an arm that learns from the rewards of sampled answers, [1, M]."""
    return BY_REWARD[turn.method](reward)


def by_weights(turn: Turn, log_w: Tensor, *, arm: Arm, settings: TrainSettings, draws: torch.Generator) -> Coefficients:
    """The coefficients of one group, [1, M], by its log w in nats, [1, M].

    draws: what PAFT draws its rationales by.
    """
    method, q = turn.method, turn.q
    baseline = settings.baseline and method is not Method.GARL_PLUGIN
    if q is None:
        found = estimators.garl_each(log_w, baseline=baseline, normalize=False)
    elif method is Method.PAFT:
        found = estimators.paft(log_w, q, normalize=False, generator=draws)
    else:
        debias = method is Method.GARL_DEBIASED
        found = estimators.garl(log_w, q, baseline=baseline, debias=debias, normalize=False)
    # M^q would change the size of the step whenever q moves: there M it is, as at q = 1.
    power = 1.0 if arm.q is None else arm.q
    return found.scaled(log_w.shape[-1] ** -power) if settings.normalize else found
