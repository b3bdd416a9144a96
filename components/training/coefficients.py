"""The coefficients that a step's estimator gives one group: by its rewards, or by its log-likelihood weights."""

import torch
from torch import Tensor

from components.config import Arm, TrainSettings
from components.methods import Method
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
    found = _unscaled(turn, log_w, settings.baseline, draws)
    # M^q would change the size of the step whenever q moves: there M it is, as at q = 1.
    power = 1.0 if arm.q is None else arm.q
    return found.scaled(log_w.shape[-1] ** -power) if settings.normalize else found


def _unscaled(turn: Turn, log_w: Tensor, baseline: bool, draws: torch.Generator) -> Coefficients:
    """What the estimator of the turn says, without the division by M^q."""
    if turn.q is None:
        return estimators.garl_each(log_w, baseline=baseline, normalize=False)
    match turn.method:
        case Method.GARL | Method.GARL_SCORE:
            return estimators.garl(log_w, turn.q, baseline=baseline, normalize=False)
        case Method.GARL_PLUGIN:
            return estimators.garl(log_w, turn.q, baseline=False, normalize=False)
        case Method.GARL_DEBIASED:
            return estimators.garl(log_w, turn.q, baseline=baseline, debias=True, normalize=False)
        case Method.PAFT:
            return estimators.paft(log_w, turn.q, normalize=False, generator=draws)
    raise ValueError(f"{turn.method} has no estimator by likelihood")
