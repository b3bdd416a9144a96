"""One update against the same update by hand: plain forward passes, coefficients in words, PyTorch's own optimizer."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from components.config import Arm, TrainSettings
from components.errors import UserError
from components.policy.logprobs import Scorer, collate
from components.randomness import generator
from components.rollout.engine import Markers, Rollout, Sampling
from components.rollout.transformers_engine import TransformersEngine
from components.training.batches import Group, Piece, cut, micro_batches
from components.training.trainer import Trainer, UpdateReport
from components.training.zero import full_weights
from tests.conftest import small_settings

NewPolicy = Callable[[], PreTrainedModel]

SEED = 7
M = 4
CPU = torch.device("cpu")
VOCABULARY = 11
METHODS = ["grpo", "garl-q0", "garl-q0.75", "garl-q1", "garl-plugin-q1", "garl-debiased-q0.5", "paft-q0.75"]


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
        if arm == "grpo":
            reward = [1.0, *torch.randint(2, (M - 2,), generator=random).tolist(), 0.0]
            answers = [item.answer_ids for item in rollouts]
            groups.append(Group(prompt, rollouts, answers, [float(r) for r in reward], name, place))
        else:
            groups.append(Group(prompt, rollouts, [gold] * M, None, name, place))
    return groups


# By hand


def by_hand(
    policy: PreTrainedModel, prompt: Sequence[int], item: Rollout, answer: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """log p of a rationale's sampled ids and of an answer, from their sequence alone."""
    whole = torch.tensor([[*prompt, *item.rationale_ids, *answer]])
    every = policy(input_ids=whole, use_cache=False).logits[0, :-1].log_softmax(-1)
    every = every.gather(1, whole[0, 1:, None])[len(prompt) - 1 :, 0].double()
    thought = len(item.rationale_ids)
    return every[: thought - item.forced_end].sum(), every[thought:].sum()


def coefficients(
    arm: Arm, w: list[float], reward: list[float] | None, settings: TrainSettings, draws: torch.Generator
) -> list[tuple[float, float]]:
    """(score, path) of each rollout of a group, from its weights or its rewards."""
    if reward is not None:
        mean = sum(reward) / M
        deviation = math.sqrt(sum((r - mean) ** 2 for r in reward) / (M - 1))
        advantages = [(r - mean) / (deviation + 1e-4) for r in reward]
        return list(zip(advantages, advantages, strict=True))
    q = arm.q or 0.0
    mean = sum(w) / M
    without = [(sum(w) - w[m]) / (M - 1) for m in range(M)]
    scale = M**-q if settings.normalize else 1.0
    if arm.method == "paft":
        drawn = torch.multinomial(torch.tensor(w, dtype=torch.float64) / sum(w), M, replacement=True, generator=draws)
        counted = [mean ** (1 - q) * drawn.tolist().count(m) * scale for m in range(M)]
        return list(zip(counted, counted, strict=True))
    path = [weight / mean**q for weight in w]
    if arm.method == "garl-debiased":
        path = [w[m] * (M * mean**-q - sum(without[j] ** -q for j in range(M) if j != m)) for m in range(M)]
    baseline = settings.baseline and arm.method != "garl-plugin"
    score = [path[m] - (without[m] ** (1 - q) if baseline else 0) for m in range(M)]
    return [(a * scale, b * scale) for a, b in zip(score, path, strict=True)]


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

    def update(self, groups: list[Group], step: int) -> None:
        self.weights, total = [], torch.zeros((), dtype=torch.float64)
        for group in groups:
            scored = [
                by_hand(self.policy, group.prompt, item, answer)
                for item, answer in zip(group.rollouts, group.answers, strict=True)
            ]
            w = [answer.exp().item() for _, answer in scored]
            draws = generator(SEED, "paft", step, group.place)
            pairs = coefficients(self.arm, w, group.reward, self.settings, draws)
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


# Updates


@pytest.mark.parametrize("arm", METHODS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_updates_are_those_by_hand(
    arm: str, optimizer: str, new_policy: NewPolicy, plain_policy: PreTrainedModel
) -> None:
    """Plain steps of SGD show the gradient's size, AdamW's show its memory."""
    chosen = {"optimizer": optimizer, "learning_rate": 0.03 if optimizer == "sgd" else 1e-3, "weight_decay": 0.01}
    policy, reference = new_policy(), ByHand(plain_policy, Arm.parse(arm), settings(**chosen))
    before = state(policy)
    trained = trainer(policy, arm, **chosen)
    for step in range(3):
        groups = make_groups(arm, seed=step)
        report = trained.update(groups, step)
        reference.update(groups, step)
        assert difference(policy, plain_policy) < 1e-6
        assert report.grad_norm == pytest.approx(reference.norm, rel=1e-4)
        assert report.loss == pytest.approx(reference.loss, rel=1e-4)
    assert difference(policy, before) > 1e-3
    trained.close()


@pytest.mark.parametrize("arm", ["garl-q0.75", "garl-debiased-q0.75", "paft-q0.75"])
@pytest.mark.parametrize("switch", [{"normalize": False}, {"baseline": False}, {"schedule": "constant"}], ids=str)
def test_every_switch_has_its_effect(
    arm: str, switch: dict[str, Any], new_policy: NewPolicy, plain_policy: PreTrainedModel
) -> None:
    chosen = {"optimizer": "sgd", "learning_rate": 0.3} | switch
    policy, reference = new_policy(), ByHand(plain_policy, Arm.parse(arm), settings(**chosen))
    trained = trainer(policy, arm, **chosen)
    trained.update(make_groups(arm), 5)
    reference.update(make_groups(arm), 5)
    assert difference(policy, plain_policy) < 1e-6
    trained.close()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("bound", [1, 10**6], ids=["many batches", "one batch"])
def test_every_zero_stage_and_any_batches_give_the_same_weights(
    stage: int, bound: int, new_policy: NewPolicy, plain_policy: PreTrainedModel
) -> None:
    """With a norm that is clipped in every step, and reported as it was before."""
    chosen = {"max_grad_norm": 0.01, "optimizer": "sgd", "learning_rate": 5.0}
    policy, reference = new_policy(), ByHand(plain_policy, Arm.parse("garl-q0.75"), settings(**chosen))
    trained = trainer(policy, "garl-q0.75", zero_stage=stage, micro_batch_tokens=bound, **chosen)
    for step in range(3):
        groups = make_groups("garl-q0.75", seed=step)
        report = trained.update(groups, step)
        reference.update(groups, step)
        assert report.grad_norm == pytest.approx(reference.norm, rel=1e-4)
        assert report.grad_norm > 0.02
        assert difference(policy, plain_policy) < 1e-6
    trained.close()


@pytest.mark.parametrize("arm", ["grpo", "garl-q0.75", "paft-q0.75"])
def test_micro_batches_change_nothing_but_rounding(arm: str, new_policy: NewPolicy) -> None:
    policies, reports = [], []
    for bound in (1, 100, 10**6):
        policy = new_policy()
        trained = trainer(policy, arm, micro_batch_tokens=bound, optimizer="sgd", learning_rate=0.03)
        shapes = ((3, 7), (1, 3), (6, 5), (2, 4), (5, 6), (1, 8))  # in no order
        reports.append(
            [trained.update(make_groups(arm, seed=step, shapes=shapes), step).metrics() for step in range(3)]
        )
        policies.append(policy)
        trained.close()
    assert all(difference(policies[0], policy) < 1e-6 for policy in policies[1:])
    for one, other in zip(reports[0], reports[2], strict=True):
        one["train/padding"] = other["train/padding"]
        assert one == pytest.approx(other, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_saved_trainer_goes_on_as_if_it_had_not_stopped(stage: int, new_policy: NewPolicy, tmp_path: Path) -> None:
    steady = new_policy()
    trained = trainer(steady, "paft-q0.75", zero_stage=stage)
    for step in range(4):
        trained.update(make_groups("paft", seed=step), step)
        if step == 1:
            trained.save(tmp_path)
    steady = state(steady)
    trained.close()
    resumed = new_policy()
    trained = trainer(resumed, "paft-q0.75", zero_stage=stage)
    trained.load(tmp_path)
    for step in (2, 3):
        trained.update(make_groups("paft", seed=step), step)
    assert difference(steady, resumed) == 0
    trained.close()


# Groups without a gradient


def useless(arm: str) -> list[Group]:
    """Nothing to learn from: equal rewards, or weights so small that they are zero at q = 0."""
    groups = make_groups(arm, seed=9)
    if arm == "grpo":
        return [replace(group, reward=[float(number % 2)] * M) for number, group in enumerate(groups)]
    return [replace(group, answers=[tuple(range(VOCABULARY)) * 60] * M) for group in groups]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("arm", ["grpo", "garl-q0"])
def test_a_step_without_a_gradient_moves_nothing_and_leaves_no_trace(
    arm: str, stage: int, new_policy: NewPolicy
) -> None:
    """AdamW's memory alone would move the weights, and weight decay would too."""
    steady, interrupted = new_policy(), new_policy()
    straight = trainer(steady, arm, zero_stage=stage, weight_decay=0.1)
    straight.update(make_groups(arm, seed=0), 0)
    straight.update(make_groups(arm, seed=1), 1)
    steady = state(steady)
    straight.close()

    trained = trainer(interrupted, arm, zero_stage=stage, weight_decay=0.1, micro_batch_tokens=1)
    trained.update(make_groups(arm, seed=0), 0)
    weights, memory = state(interrupted), optimizer_state(trained)
    assert len(memory) >= 2
    report = trained.update(useless(arm), 5)
    assert difference(interrupted, weights) == 0
    assert all(torch.equal(tensor, memory[name]) for name, tensor in optimizer_state(trained).items())
    assert report.metrics()["train/groups_without_gradient"] == 3
    assert report.grad_norm == report.loss == 0
    trained.update(make_groups(arm, seed=1), 1)
    assert difference(steady, interrupted) < 1e-6
    trained.close()


def optimizer_state(trained: Trainer) -> dict[str, Tensor]:
    """Everything the optimizer remembers, by parameter and name; a copy."""
    optimizer = getattr(trained.engine.optimizer, "optimizer", trained.engine.optimizer)
    return {
        f"{number}.{name}": torch.as_tensor(value).clone()
        for number, values in enumerate(optimizer.state.values())
        for name, value in values.items()
    }


@pytest.mark.parametrize("arm", ["grpo", "garl-q0"])
def test_groups_without_a_gradient_count_in_the_mean(
    arm: str, new_policy: NewPolicy, plain_policy: PreTrainedModel
) -> None:
    """Two of four groups carry nothing; the others' share of the gradient does not grow for that."""
    chosen = {"optimizer": "sgd", "learning_rate": 0.3}
    groups = [*make_groups(arm)[:2], *useless(arm)[:2]]
    policy, reference = new_policy(), ByHand(plain_policy, Arm.parse(arm), settings(**chosen))
    trained = trainer(policy, arm, **chosen)
    report = trained.update(groups, 0)
    reference.update(groups, 0)
    assert difference(policy, plain_policy) < 1e-6
    assert report.without_gradient == 2
    trained.close()


# What an update reports


def test_figures_of_garl_are_those_of_its_weights(new_policy: NewPolicy, plain_policy: PreTrainedModel) -> None:
    groups = make_groups("garl")
    trained = trainer(new_policy(), "garl-q0.5")
    metrics = trained.update(groups, 0).metrics()
    reference = ByHand(plain_policy, Arm.parse("garl-q0.5"), settings())
    reference.update(groups, 0)
    w = torch.tensor(reference.weights, dtype=torch.float64)
    assert metrics["train/p_estimate"] == pytest.approx(w.mean().item(), rel=1e-5)
    ess = w.sum(1) ** 2 / (w**2).sum(1)
    assert metrics["train/effective_samples"] == pytest.approx(ess.mean().item(), rel=1e-5)
    reward = w / (M * w.mean(1, keepdim=True)) ** 0.5
    assert metrics["train/effective_reward"] == pytest.approx(reward.mean().item(), rel=1e-5)
    assert metrics["train/groups_without_gradient"] == 0
    trained.close()


def test_figures_of_grpo_are_those_of_its_rewards(new_policy: NewPolicy) -> None:
    rewards = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]
    groups = [replace(group, reward=r) for group, r in zip(make_groups("grpo"), rewards, strict=True)]
    trained = trainer(new_policy(), "grpo")
    metrics = trained.update(groups, 0).metrics()
    assert metrics["train/p_estimate"] == pytest.approx(5 / 12)
    assert metrics["train/groups_without_gradient"] == 2
    assert "train/effective_samples" not in metrics
    trained.close()


@pytest.mark.parametrize("arm", ["grpo", "garl-q0.5"])
def test_mismatch_is_of_sampled_ids_alone(arm: str, new_policy: NewPolicy, plain_policy: PreTrainedModel) -> None:
    """The sampler is made to say 0.25 more for the first id of each rationale, and nonsense for forced ids."""
    groups, counted, off = [], 0, 0.0
    for group in make_groups(arm):
        rollouts = []
        for item in group.rollouts:
            truth = every_logprob(plain_policy, item)
            thought = len(item.rationale_ids)
            truth[0] += 0.25
            for index in range(thought - item.forced_end, thought):
                truth[index] = -99.0
            rollouts.append(replace(item, logprobs=tuple(truth)))
            counted += thought - item.forced_end + (len(item.answer_ids) if arm == "grpo" else 0)
            off += 0.25 if thought > item.forced_end else 0
        groups.append(replace(group, rollouts=rollouts))
    trained = trainer(new_policy(), arm)
    metrics = trained.update(groups, 0).metrics()
    assert metrics["mismatch/max_abs"] == pytest.approx(0.25, abs=1e-5)
    assert metrics["mismatch/mean_abs"] == pytest.approx(off / counted, abs=1e-5)
    assert metrics["mismatch/kl"] == pytest.approx(off / counted, abs=1e-5)
    trained.close()


@torch.no_grad()
def every_logprob(policy: PreTrainedModel, item: Rollout) -> list[float]:
    whole = torch.tensor([[*item.prompt_ids, *item.rationale_ids, *item.answer_ids]])
    logprobs = policy(input_ids=whole).logits[0, :-1].log_softmax(-1).gather(1, whole[0, 1:, None])
    return logprobs[len(item.prompt_ids) - 1 :, 0].tolist()


def test_figures_are_means_over_groups() -> None:
    report = UpdateReport(
        p=[0.5, 0.0, 0.25, 0.25],
        effective_reward=[1.0, 0.0, 0.5, 0.5],
        effective_samples=[4.0, 0.0, 1.0, 1.0],
        without_gradient=1,
        rollouts=16,
        trained=12,
        padding=[0.0, 0.5],
        loss=2.0,
        grad_norm=3.0,
        mismatch=[torch.tensor([-0.5, 0.25]), torch.tensor([0.0, 0.75])],
    )
    assert report.metrics() == {
        "train/p_estimate": 0.25,
        "train/groups_without_gradient": 1.0,
        "train/rollouts_trained": 0.75,
        "train/skipped": 0.0,
        "train/padding": 0.25,
        "train/loss": 2.0,
        "train/grad_norm": 3.0,
        "train/effective_reward": 0.5,
        "train/effective_samples": 1.5,
        "mismatch/mean_abs": 0.375,
        "mismatch/max_abs": 0.75,
        "mismatch/kl": 0.125,
    }


# The expected update is the gradient of P


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


# Micro-batches


def whole(groups: Sequence[Group]) -> list[Piece]:
    return [Piece(group, tuple(range(len(group.rollouts)))) for group in groups]


def run(batch: Sequence[Piece]) -> int:
    """The ids that a batch runs."""
    return collate([piece.group.prompt for piece in batch], [piece.rows for piece in batch], CPU).ids.numel()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bound", [1, 60, 200, 10**6])
def test_micro_batches_hold_every_rollout_once_within_the_bound(bound: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    shapes = torch.randint(1, 15, (20, 2), generator=random).tolist()
    groups = make_groups("garl", seed=seed, shapes=[(prompt, longest) for prompt, longest in shapes])
    pieces = [part for piece in whole(groups) for part in cut(piece, bound)]
    batches = micro_batches(pieces, bound)
    rollouts = [(piece.group.place, member) for batch in batches for piece in batch for member in piece.members]
    assert sorted(rollouts) == [(place, member) for place in range(20) for member in range(M)]
    assert all(batches)
    assert all(run(batch) <= bound for batch in batches if len(batch) > 1 or len(batch[0].members) > 1)
    assert all(run(batch) == sum(piece.tokens for piece in batch) for batch in batches)
    longest = [piece.longest for batch in batches for piece in batch]
    assert longest == sorted(longest)
    assert len(batches) == {1: 20 * M, 10**6: 1}.get(bound, len(batches))


def test_micro_batches_are_filled_before_a_new_one_begins() -> None:
    pieces = whole(make_groups("garl", shapes=[(5, 5)] * 6))
    assert len({piece.tokens for piece in pieces}) == 1
    assert [len(batch) for batch in micro_batches(pieces, 2 * pieces[0].tokens + 20)] == [2, 2, 2]
    assert micro_batches([], 100) == []


# Ways to train


def test_paft_trains_what_it_drew_alone(new_policy: NewPolicy) -> None:
    policy, ids = new_policy(), []
    trained = trainer(policy, "paft-q0.75")
    policy.get_input_embeddings().register_forward_pre_hook(
        lambda _, given: ids.append(given[0].numel()) if torch.is_grad_enabled() else None
    )
    report = trained.update(make_groups("paft"), 0)
    trained.close()
    assert 3 <= report.trained < report.rollouts == 3 * M
    assert sum(ids) < sum(piece.tokens for piece in whole(make_groups("paft")))


@pytest.mark.parametrize("way", [{"gradient_checkpointing": True}, {"offload": True, "zero_stage": 2}], ids=str)
def test_ways_that_save_memory_change_nothing_but_rounding(way: dict[str, Any], new_policy: NewPolicy) -> None:
    plain, saving = new_policy(), new_policy()
    for policy, others in ((plain, {}), (saving, way)):
        trained = trainer(policy, "garl-q0.75", max_grad_norm=0.01, **others)
        for step in range(3):
            trained.update(make_groups("garl", seed=step), step)
        trained.close()
    assert difference(plain, saving) < 1e-6


def test_bfloat16_trains_with_float32_behind_it(new_policy: NewPolicy) -> None:
    """Steps too small for a bfloat16 weight to notice add up all the same."""
    policy, exact = new_policy().to(torch.bfloat16), new_policy()
    for model, stage in ((policy, 2), (exact, 0)):
        trained = trainer(model, "garl-q0.75", zero_stage=stage, learning_rate=1e-4, schedule="constant")
        for step in range(50):
            trained.update(make_groups("garl", seed=step), step)
        trained.close()
    models = (new_policy(), policy, exact)
    before, first, second = (torch.cat([w.float().flatten() for w in state(m).values()]) for m in models)
    moved, wanted = first - before, second - before
    assert torch.cosine_similarity(moved, wanted, dim=0) > 0.5


def test_adapters_train_alone_and_are_merged_for_sampler_and_checkpoint(
    new_policy: NewPolicy, plain_policy: PreTrainedModel, tmp_path: Path
) -> None:
    policy, base = new_policy(), state(plain_policy)
    trained = trainer(policy, "garl-q0.75", lora_rank=2, learning_rate=0.01)
    assert not trained.lends_policy
    assert difference(state(policy), base) == 0
    for step in range(3):
        trained.update(make_groups("garl", seed=step), step)
    merged = state(policy)
    changed = {name for name in base if not torch.equal(merged[name], base[name])}
    assert changed == {name for name in base if "proj" in name}
    plain_policy.load_state_dict(merged)
    group = make_groups("garl")[0]
    batch = trained.scorer.collate([group.prompt], [group.rows])
    with torch.no_grad():
        torch.testing.assert_close(trained.scorer(batch), Scorer(plain_policy)(batch), rtol=1e-5, atol=1e-5)
    trained.save(tmp_path)
    trained.close()
    resumed = trainer(new_policy(), "garl-q0.75", lora_rank=2)
    resumed.load(tmp_path)
    assert difference(state(resumed.policy), merged) == 0
    resumed.close()


# Guards


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_step_that_is_not_finite_is_skipped_and_leaves_no_trace(stage: int, new_policy: NewPolicy) -> None:
    steady, skipping = new_policy(), new_policy()
    straight = trainer(steady, "garl-q0.75", zero_stage=stage)
    trained = trainer(skipping, "garl-q0.75", zero_stage=stage, non_finite="skip", micro_batch_tokens=1)
    straight.update(make_groups("garl", seed=0), 0)
    trained.update(make_groups("garl", seed=0), 0)
    weights = state(skipping)
    with poisoned(trained):
        report = trained.update(make_groups("garl", seed=5), 1)
    assert report.metrics()["train/skipped"] == 1
    assert difference(skipping, weights) == 0
    straight.update(make_groups("garl", seed=1), 2)
    trained.update(make_groups("garl", seed=1), 2)
    assert difference(steady, skipping) < 1e-6
    straight.close()
    trained.close()


def test_a_step_that_is_not_finite_names_its_examples(new_policy: NewPolicy) -> None:
    policy = new_policy()
    trained = trainer(policy, "garl-q0.75", micro_batch_tokens=60)
    before = state(policy)
    with poisoned(trained), pytest.raises(UserError, match=r"^step 4: .* not finite for example\(s\) example-\d;"):
        trained.update(make_groups("garl"), 3)
    assert difference(policy, before) == 0
    trained.close()


@contextmanager
def poisoned(trained: Trainer) -> Iterator[None]:
    """The gradient of the second pass becomes NaN on its way into one weight."""
    passes = 0

    def poison(gradient: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        return gradient * torch.nan if passes == 2 else gradient

    weight = trained.policy.get_input_embeddings().weight
    for hook in trained.watch.hooks:
        hook.remove()
    handle = weight.register_hook(poison)
    trained.watch = type(trained.watch)(trained.scorer)
    yield
    handle.remove()
