"""The expected update against the gradient of P, the probability of success, found by going through every rationale."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from components.policy.markers import Markers
from components.rollout.engine import Rollout, Sampling
from components.rollout.transformers_engine import TransformersEngine
from components.training.batches import Group
from tests.components.training.by_hand import M, NewPolicy, by_hand, state, trainer
from tests.components.training.conftest import VOCABULARY


@dataclass(frozen=True)
class Enumerated:
    """Every rationale of a prompt: one sampled id and, unless that is the marker itself, a forced marker."""

    prompt: tuple[int, ...]
    gold: tuple[int, ...]
    markers: Markers = field(default=Markers(end_of_thinking=(9,), end_of_turn=(10,), pad=0))

    def rollouts(self) -> list[Rollout]:
        marker = self.markers.end_of_thinking
        return [
            Rollout(self.prompt, (first, *marker), (), (0.0, 0.0), "length", 1)
            if (first,) != marker
            else Rollout(self.prompt, marker, (), (0.0,), "stop", 0)
            for first in range(VOCABULARY)
        ]

    def success(self, policy: PreTrainedModel) -> Tensor:
        """P, with its graph: the sum over rationales of p(z) p(y* given z)."""
        scored = [by_hand(policy, self.prompt, item, self.gold) for item in self.rollouts()]
        return torch.stack([(rationale + answer).exp() for rationale, answer in scored]).sum()

    def probabilities(self, policy: PreTrainedModel) -> list[float]:
        with torch.no_grad():
            return [by_hand(policy, self.prompt, item, self.gold)[0].exp().item() for item in self.rollouts()]


PROBLEMS = [Enumerated((3, 1, 4), gold=(5, 10)), Enumerated((2,), gold=(6, 10))]


def gradient_of_success(policy: PreTrainedModel, problems: Sequence[Enumerated]) -> Tensor:
    mean = torch.stack([problem.success(policy) for problem in problems]).mean()
    return flat(torch.autograd.grad(mean, list(policy.parameters())))


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


class Steps:
    """What single updates of plain SGD add to the weights, each from the same weights."""

    def __init__(self, policy: PreTrainedModel, arm: str) -> None:
        self.policy, self.start = policy, state(policy)
        self.trainer = trainer(policy, arm, optimizer="sgd", learning_rate=1.0)

    def step(self, groups: list[Group]) -> Tensor:
        self.trainer.update(groups, 0)
        moved = flat(list(self.policy.parameters())) - flat([self.start[n] for n, _ in self.policy.named_parameters()])
        self.policy.load_state_dict(self.start)
        return moved


@pytest.mark.parametrize("arm", ["garl-q0", "garl-plugin-q0", "garl-debiased-q0"])
def test_over_all_groups_of_two_the_expected_update_is_the_gradient_of_success(
    arm: str, new_policy: NewPolicy, plain_policy: PreTrainedModel
) -> None:
    """Every pair of rationales, weighed by how often it would be sampled: no statistics at all."""
    problem = PROBLEMS[0]
    rollouts, likely = problem.rollouts(), problem.probabilities(plain_policy)
    assert sum(likely) == pytest.approx(1, abs=1e-6)
    steps = Steps(new_policy(), arm)
    expected = torch.zeros(())
    for one, other in product(range(VOCABULARY), repeat=2):
        group = Group(problem.prompt, [rollouts[one], rollouts[other]], [problem.gold] * 2, None)
        expected = expected + likely[one] * likely[other] * steps.step([group])
    true = gradient_of_success(plain_policy, [problem])
    assert (expected - true).norm() < 1e-4 * true.norm()
    steps.trainer.close()


def test_sampled_updates_scatter_around_the_gradient_of_success(
    new_policy: NewPolicy, plain_policy: PreTrainedModel
) -> None:
    """From the engine's own rollouts: their mean, along the gradient and along random directions, is the true one."""
    policy = new_policy()
    engine = TransformersEngine(policy, PROBLEMS[0].markers, batch_rollouts=2000)
    steps, samples = Steps(policy, "garl-q0"), []
    for number in range(60):
        sampling = Sampling(max_new_tokens=5, answer_reserve=4, seed=number, answers=False)
        sampled = engine.generate([problem.prompt for problem in PROBLEMS] * 50, M, sampling)
        groups = [
            Group(problem.prompt, rollouts, [problem.gold] * M, None)
            for problem, rollouts in zip(PROBLEMS * 50, sampled, strict=True)
        ]
        samples.append(steps.step(groups))
    steps.trainer.close()
    true = gradient_of_success(plain_policy, PROBLEMS)
    directions = torch.randn(len(true), 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    directions[:, 0] = true
    along = torch.stack(samples) @ directions
    error = along.std(0) / math.sqrt(len(samples))
    assert ((along.mean(0) - true @ directions) / error).abs().max() < 3.5
    assert (true @ true) / error[0] > 15  # so that a gradient a quarter too small would be seen
