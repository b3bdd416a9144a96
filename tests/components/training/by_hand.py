"""Groups and their updates by hand: plain forward passes, coefficients in words, PyTorch's own optimizer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from components.config import Arm, TrainSettings
from components.methods import Method
from components.randomness import generator
from components.rollout.engine import Rollout
from components.training.batches import Group, GroupSlice
from components.training.trainer import Trainer
from components.training.zero import full_weights
from tests.components.models import plain_logprobs
from tests.components.training.conftest import VOCABULARY
from tests.conftest import small_settings

NewPolicy = Callable[[], PreTrainedModel]

SEED = 7
M = 4


def settings(**others: Any) -> TrainSettings:
    fields = {"max_grad_norm": 1e9, "zero_stage": 0, "micro_batch_tokens": 10**6, "steps": 8}
    return small_settings().train.model_copy(update=fields | others)


# Groups


def ids(random: torch.Generator, length: int) -> tuple[int, ...]:
    return tuple(torch.randint(VOCABULARY, (length,), generator=random).tolist())


def rollout(random: torch.Generator, prompt: tuple[int, ...], thought: int, answer: int, forced: int) -> Rollout:
    logprobs = -torch.rand(thought + answer, generator=random).double()
    return Rollout(prompt, ids(random, thought), ids(random, answer), tuple(logprobs.tolist()), "stop", forced)


def make_groups(
    arm: str, *, seed: int = 0, shapes: Sequence[tuple[int, int]] = ((1, 3), (6, 5), (3, 7))
) -> list[Group]:
    """One group for each (ids of the prompt, longest rationale), with other lengths and forced ends within a group."""
    random = torch.Generator().manual_seed(seed)
    groups = []
    for place, (prompt_length, longest) in enumerate(shapes):
        name = f"example-{place}"
        prompt = ids(random, prompt_length)
        gold = ids(random, 2)
        rollouts = [rollout(random, prompt, max(1, longest - m), m % 3 + 1, forced=int(m == 0)) for m in range(M)]
        if arm in [method for method in Method if method.learns_from == "reward"]:
            reward = [1.0, *torch.randint(2, (M - 2,), generator=random).tolist(), 0.0]
            answers = [item.answer_ids for item in rollouts]
            groups.append(Group(prompt, rollouts, answers, [float(r) for r in reward], name, place))
        else:
            groups.append(Group(prompt, rollouts, [gold] * M, None, name, place))
    return groups


def whole(groups: Sequence[Group]) -> list[GroupSlice]:
    return [GroupSlice(group, tuple(range(len(group.rollouts)))) for group in groups]


# By hand


def by_hand(
    policy: PreTrainedModel, prompt: Sequence[int], item: Rollout, answer: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """log p of a rationale's sampled ids and of an answer, from their sequence alone."""
    every = plain_logprobs(policy, prompt, [*item.rationale_ids, *answer]).double()
    thought = len(item.rationale_ids)
    return every[: thought - item.forced_end].sum(), every[thought:].sum()


def advantages(method: Method, reward: list[float]) -> list[float]:
    mean = sum(reward) / M
    deviation = math.sqrt(sum((r - mean) ** 2 for r in reward) / (M - 1))
    formulas: dict[str, Callable[[float], float]] = {
        "grpo": lambda r: (r - mean) / (deviation + 1e-4),
        "dr-grpo": lambda r: r - mean,
        "rloo": lambda r: r - (sum(reward) - r) / (M - 1),
        "maxrl": lambda r: r / mean - 1,
        "star": lambda r: r / sum(reward) * M,
    }
    return [formulas[method.value](r) for r in reward]


def coefficients(
    arm: Arm,
    w: list[float],
    reward: list[float] | None,
    settings: TrainSettings,
    draws: torch.Generator,
    q: float | None = None,
) -> list[tuple[float, float]]:
    """(score, path) of each rollout of a group, from its weights or its rewards; q: where it moves."""
    if reward is not None:
        both = advantages(arm.method, reward)
        return list(zip(both, both, strict=True))
    mean = sum(w) / M
    without = [(sum(w) - w[m]) / (M - 1) for m in range(M)]
    scale = (1 / M if arm.q is None else M**-arm.q) if settings.normalize else 1.0
    if arm.q_text == "each":
        own = [max(0.0, 1 - math.log(0.1) / math.log(p)) for p in without]
        path = [weight / mean**each for weight, each in zip(w, own, strict=True)]
        baselines = [p ** (1 - each) if settings.baseline else 0.0 for p, each in zip(without, own, strict=True)]
        return [(scale * (b - base), scale * b) for b, base in zip(path, baselines, strict=True)]
    q = arm.q if q is None else q
    assert q is not None
    if arm.method == "paft":
        drawn = torch.multinomial(torch.tensor(w, dtype=torch.float64) / sum(w), M, replacement=True, generator=draws)
        counted = [mean ** (1 - q) * drawn.tolist().count(m) * scale for m in range(M)]
        return list(zip(counted, counted, strict=True))
    path = [weight / mean**q for weight in w]
    if arm.method == "garl-debiased":
        path = [w[m] * (M * mean**-q - sum(without[j] ** -q for j in range(M) if j != m)) for m in range(M)]
    baseline = settings.baseline and arm.method != "garl-plugin"
    score = [path[m] - (without[m] ** (1 - q) if baseline else 0) for m in range(M)]
    learns = arm.method != "garl-score"
    return [(a * scale, b * scale * learns) for a, b in zip(score, path, strict=True)]


@dataclass
class ByHand:
    """Updates without the trainer, and what they saw."""

    policy: PreTrainedModel
    arm: Arm
    settings: TrainSettings
    optimizer: torch.optim.Optimizer = field(init=False)
    loss: float = math.nan
    norm: float = math.nan
    weights: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        parameters, decay = self.policy.parameters(), self.settings.weight_decay
        if self.settings.optimizer == "adamw":
            self.optimizer = torch.optim.AdamW(parameters, weight_decay=decay, eps=self.settings.adam_epsilon)
        else:
            self.optimizer = torch.optim.SGD(parameters, weight_decay=decay)

    def update(self, groups: list[Group], step: int, q: float | None = None) -> None:
        self.weights, total = [], torch.zeros((), dtype=torch.float64)
        for group in groups:
            scored = [
                by_hand(self.policy, group.prompt, item, answer)
                for item, answer in zip(group.rollouts, group.answers, strict=True)
            ]
            w = [answer.exp().item() for _, answer in scored]
            draws = generator(SEED, "paft", step, group.place)
            pairs = coefficients(self.arm, w, group.reward, self.settings, draws, q)
            for (score, path), (rationale, answer) in zip(pairs, scored, strict=True):
                total = total - (score * rationale + path * answer) / (M * len(groups))
            self.weights.append(w)
        self.optimizer.zero_grad()
        total.backward()
        self.loss = total.item()
        self.norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.settings.max_grad_norm).item()
        left = (8 - step) / 8 if self.settings.schedule == "linear" else 1
        self.optimizer.param_groups[0]["lr"] = self.settings.learning_rate * left
        self.optimizer.step()


def trainer(policy: PreTrainedModel, arm: str, **others: Any) -> Trainer:
    return Trainer(policy, Arm.parse(arm), settings(**others), seed=SEED)


def state(policy: PreTrainedModel) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in full_weights(policy)}


def difference(one: PreTrainedModel | dict[str, Tensor], other: PreTrainedModel | dict[str, Tensor]) -> float:
    first, second = (item if isinstance(item, dict) else state(item) for item in (one, other))
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


def useless(arm: str) -> list[Group]:
    """Nothing to learn from: equal rewards, or weights so small that they are zero at q = 0."""
    groups = make_groups(arm, seed=9)
    if arm == "grpo":
        return [replace(group, reward=[float(number % 2)] * M) for number, group in enumerate(groups)]
    return [replace(group, answers=[tuple(range(VOCABULARY)) * 60] * M) for group in groups]
