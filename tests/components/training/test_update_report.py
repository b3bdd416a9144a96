"""What an update reports, against the same figures by hand; and log P, which validation asks for."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from components.config import Arm
from components.rollout.engine import Rollout
from components.training.update_report import UpdateReport
from tests.components.models import plain_logprobs
from tests.components.training.by_hand import (
    ByHand,
    M,
    NewPolicy,
    make_groups,
    settings,
    trainer,
    useless,
)


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


def test_figures_of_own_commitments_are_those_of_its_examples(
    new_policy: NewPolicy, plain_policy: PreTrainedModel
) -> None:
    groups = make_groups("garl")
    trained = trainer(new_policy(), "garl-qeach")
    metrics = trained.update(groups, 0).metrics()
    reference = ByHand(plain_policy, Arm.parse("garl-qeach"), settings())
    reference.update(groups, 0)
    w = torch.tensor(reference.weights, dtype=torch.float64)
    others = (w.sum(1, keepdim=True) - w) / (M - 1)
    q = (1 - math.log(0.1) / others.log()).clamp(min=0)
    assert q.std() > 0.01
    assert metrics["train/q"] == pytest.approx(q.mean().item(), rel=1e-5)
    assert metrics["train/p_estimate"] == pytest.approx(w.mean().item(), rel=1e-5)
    assert "train/effective_reward" not in metrics
    trained.close()


def test_the_mean_of_log_p_survives_what_p_does_not(new_policy: NewPolicy) -> None:
    """Answers of hundreds of ids, for P far below the smallest float."""
    trained = trainer(new_policy(), "garl-q1")
    report = trained.update(useless("garl-q1"), 0)
    assert report.p == [0, 0, 0]
    assert report.mean_log_p is not None
    assert -1e4 < report.mean_log_p < -1000
    report.log_p = [-3.0, -math.inf, -5.0]  # an example without any chance does not count
    assert report.mean_log_p == -4
    report.log_p = [-math.inf]
    assert report.mean_log_p is None
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
    return plain_logprobs(policy, item.prompt_ids, item.rationale_ids + item.answer_ids).tolist()


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
        "train/escaped": 0.75,
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


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("bound", [1, 10**6], ids=["many batches", "one batch"])
def test_log_p_is_the_log_of_the_mean_over_rationales(
    stage: int, bound: int, new_policy: NewPolicy, plain_policy: PreTrainedModel
) -> None:
    trained = trainer(new_policy(), "grpo", zero_stage=stage, micro_batch_tokens=bound)
    groups, found = make_groups("garl"), []
    for group in groups:
        log_w = []
        for row in group.rows:
            read = [*group.prompt, *row.rationale]
            log_w.append(plain_logprobs(plain_policy, read, row.answer).sum().item())
        found.append(math.log(sum(map(math.exp, log_w)) / len(log_w)))
    assert trained.log_p(groups) == pytest.approx(found, rel=1e-5)
    assert trained.log_p([]) == []
    trained.close()
