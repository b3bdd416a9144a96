"""Updates with importance weights against the same updates by hand: rollouts of a sampler whose log p is made up."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from components.config import Arm
from components.randomness import generator
from components.training.batches import Group
from tests.components.models import plain_logprobs
from tests.components.training.by_hand import (
    SEED,
    M,
    NewPolicy,
    coefficients,
    difference,
    make_groups,
    settings,
    state,
    trainer,
)

RATE, BOUND = 0.3, 1.5


def token_logprobs(policy: PreTrainedModel, group: Group, member: int) -> Tensor:
    """log p of every id of a rationale and its answer, forced ids too."""
    ids = [*group.rollouts[member].rationale_ids, *group.answers[member]]
    return plain_logprobs(policy, group.prompt, ids).double()


def from_another_sampler(policy: PreTrainedModel, group: Group, random: torch.Generator) -> tuple[Group, list[Tensor]]:
    """The group as if a sampler had drawn it whose log p lies up to 0.4 nats beside the policy's, and by how much."""
    rollouts, gaps = [], []
    for member, item in enumerate(group.rollouts):
        own = token_logprobs(policy, group, member).detach()
        gap = 0.8 * torch.rand(len(own), generator=random, dtype=torch.float64) - 0.4
        thought = len(item.rationale_ids)
        gap[thought - item.forced_end : thought] = 0
        if group.reward is None:
            gap[thought:] = 0  # nobody sampled the gold answer
        rollouts.append(replace(item, logprobs=tuple((own - gap).tolist())))
        gaps.append(gap)
    return replace(group, rollouts=rollouts), gaps


def bounded(ratio: Tensor, kind: str) -> Tensor:
    return ratio.clamp(max=BOUND) if kind == "truncated" else torch.where(ratio > BOUND, 0, ratio)


def update_by_hand(policy: PreTrainedModel, arm: Arm, groups: list[Group], gaps: list, kind: str, level: str) -> None:
    """One step of SGD on - mean [score * log p(z) + path * log p(y given z)], every term by its weight."""
    total = torch.zeros((), dtype=torch.float64)
    for group, of_group in zip(groups, gaps, strict=True):
        logprobs = [token_logprobs(policy, group, member) for member in range(M)]
        thoughts = [len(item.rationale_ids) for item in group.rollouts]
        w = [logp[thought:].sum().exp().item() for logp, thought in zip(logprobs, thoughts, strict=True)]
        whole = [bounded(gap.sum().exp(), kind).item() if level == "sequence" else 1.0 for gap in of_group]
        draws = generator(SEED, "paft", 0, group.place)
        weighed = [a * r for a, r in zip(w, whole, strict=True)]
        whole_arm = Arm.parse(arm.name.replace("-score", ""))  # its baseline is told by a path that is dropped later
        pairs = coefficients(whole_arm, weighed, group.reward, settings(), draws)
        for member, (score, path) in enumerate(pairs):
            r = whole[member]
            if group.reward is None:
                score, path = path + r * (score - path), path * (arm.method != "garl-score")
            else:
                score, path = score * r, path * r
            terms = logprobs[member]
            if level == "token":
                terms = terms * bounded(of_group[member].exp(), kind)
            thought, forced = thoughts[member], group.rollouts[member].forced_end
            sums = terms[: thought - forced].sum(), terms[thought:].sum()
            total = total - (score * sums[0] + path * sums[1]) / (M * len(groups))
    total.backward()
    with torch.no_grad():
        for parameter in policy.parameters():
            assert parameter.grad is not None
            parameter -= RATE * parameter.grad


@pytest.mark.parametrize(
    "arm", ["grpo", "star", "garl-q0.75", "garl-debiased-q0.5", "garl-score-q0.75", "garl-qeach", "paft-q0.75"]
)
@pytest.mark.parametrize("kind", ["truncated", "masked"])
@pytest.mark.parametrize("level", ["sequence", "token"])
@pytest.mark.parametrize("batch_tokens", [1, 10**6], ids=["two passes", "one pass"])
def test_updates_with_importance_weights_are_those_by_hand(
    arm: str, kind: str, level: str, batch_tokens: int, new_policy: NewPolicy, plain_policy: PreTrainedModel
) -> None:
    random = torch.Generator().manual_seed(1)
    drawn = [from_another_sampler(plain_policy, group, random) for group in make_groups(arm)]
    groups, gaps = [group for group, _ in drawn], [gap for _, gap in drawn]
    chosen: dict[str, Any] = {
        "optimizer": "sgd", "learning_rate": RATE, "weight_decay": 0.0, "schedule": "constant",
        "micro_batch_tokens": batch_tokens, "importance_level": level, "importance_bound": BOUND,
    }  # fmt: skip
    weighed, plain = new_policy(), new_policy()
    for policy, weights in ((weighed, kind), (plain, "none")):
        trained = trainer(policy, arm, importance_weights=weights, **chosen)
        report = trained.update(groups, 0)
        trained.close()
        assert math.isfinite(report.loss)
        assert ("mismatch/weights_at_bound" in report.metrics()) == (weights != "none")
        largest = max(gap.abs().max().item() for of_group in gaps for gap in of_group)
        assert report.metrics()["mismatch/max_abs"] == pytest.approx(largest, abs=1e-5)
    update_by_hand(plain_policy, Arm.parse(arm), groups, gaps, kind, level)
    assert difference(weighed, plain_policy) < 1e-6
    assert difference(weighed, state(plain)) > 1e-4
