"""What one update saw, and the figures that are logged of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from components.objective.commitment import ATTENUATION


@dataclass(frozen=True)
class RolloutWeights:
    """What a group's rollouts weighed in an update, a value each.

    place: of the group in its step.
    w: p(y given x, z) of the gold answer, times the rollout's importance weight if there is one; empty where there are
        rewards.
    """

    place: int
    w: list[float]
    score: list[float]
    path: list[float]


@dataclass
class UpdateReport:
    """What one update saw, a value a group unless said otherwise; means are taken when it is logged."""

    p: list[float] = field(default_factory=list)  # w_bar, or the mean reward where no w exists
    log_p: list[float] = field(default_factory=list)  # of w_bar, in nats, which P itself may underflow; -inf at P = 0
    q: list[float] = field(default_factory=list)  # where each example has its own: its rollouts' mean
    kinds: list[str] = field(default_factory=list)  # of the examples, in the order of p
    effective_reward: list[float] = field(default_factory=list)
    effective_samples: list[float] = field(default_factory=list)
    without_gradient: int = 0  # groups
    rollouts: int = 0
    trained: int = 0  # rollouts that had a gradient pass
    not_finite: list[str] = field(default_factory=list)  # examples
    padding: list[float] = field(default_factory=list)  # share of places without an id, a value a pass
    loss: float = 0.0  # the surrogate whose gradient was taken, of the whole step
    grad_norm: float = 0.0  # before clipping, of the whole step
    mismatch: list[Tensor] = field(default_factory=list)  # log p of sampler minus trainer, [sampled ids] each
    at_bound: list[Tensor] = field(default_factory=list)  # which importance weights the bound changed
    rollout_weights: list[RolloutWeights] = field(default_factory=list)

    @classmethod
    def merge(cls, parts: Sequence["UpdateReport"]) -> "UpdateReport":
        """The report of a step from those of its processes."""
        merged = cls()
        for item in fields(cls):
            for part in parts:
                setattr(merged, item.name, getattr(merged, item.name) + getattr(part, item.name))
        return merged

    @property
    def mean_log_p(self) -> float | None:
        """The mean of log P, in nats, over the examples that have any chance; None where none has."""
        logs = [log_p for log_p in self.log_p if math.isfinite(log_p)]
        return sum(logs) / len(logs) if logs else None

    def metrics(self) -> dict[str, float]:
        """The figures of the step by the names they are logged under; those that the arm does not have are left out."""
        groups = len(self.p)
        metrics = {
            "train/p_estimate": sum(self.p) / groups,
            "train/escaped": sum(p >= ATTENUATION for p in self.p) / groups,
            "train/groups_without_gradient": float(self.without_gradient),
            "train/rollouts_trained": self.trained / max(1, self.rollouts),
            "train/skipped": float(bool(self.not_finite)),
            "train/padding": sum(self.padding) / max(1, len(self.padding)),
            "train/loss": self.loss,
            "train/grad_norm": self.grad_norm,
        }
        for kind in sorted({kind for kind in self.kinds if kind}):
            members = [p for p, of in zip(self.p, self.kinds, strict=True) if of == kind]
            metrics[f"train/kinds/{kind}/p_estimate"] = sum(members) / len(members)
        if self.effective_reward:
            metrics["train/effective_reward"] = sum(self.effective_reward) / groups
        if self.q:
            metrics["train/q"] = sum(self.q) / groups
        if self.effective_samples:
            metrics["train/effective_samples"] = sum(self.effective_samples) / groups
        if self.mismatch:
            gap = torch.cat(self.mismatch)
            metrics["mismatch/mean_abs"] = gap.abs().mean().item()
            metrics["mismatch/max_abs"] = gap.abs().max().item()
            metrics["mismatch/kl"] = gap.mean().item()  # of the sampler from the trainer, estimated on its samples
        if self.at_bound:
            metrics["mismatch/weights_at_bound"] = torch.cat(self.at_bound).double().mean().item()
        return metrics
