"""One update against the same update by hand: the weights it leaves, the figures it reports, the steps it refuses."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from components.config import Arm, Method
from components.errors import UserError
from components.policy.logprobs import Scorer
from components.rollout.engine import Rollout
from components.training.batches import Group, GroupSlice
from components.training.trainer import Trainer
from components.training.turn import Turn
from components.training.update_report import UpdateReport
from components.training.zero import load_policy, start_ranks
from tests.components.models import plain_logprobs
from tests.components.training.by_hand import (
    ByHand,
    M,
    NewPolicy,
    difference,
    make_groups,
    settings,
    state,
    trainer,
    whole,
)
from tests.components.training.conftest import VOCABULARY

METHODS = [
    "grpo", "dr-grpo", "rloo", "maxrl", "star", "garl-q0", "garl-q0.75", "garl-q1", "garl-plugin-q1",
    "garl-debiased-q0.5", "garl-score-q0.75", "paft-q0.75", "garl-paft-q0.5", "garl-q1to0", "paft-q1to0-at0.25",
    "garl-qadaptive", "garl-qeach",
]  # fmt: skip
# What moves goes from 1 to 0 in eight steps, and is 1 where nothing was measured before.
MOVING = {
    "garl-q1to0": lambda step: 1 - step / 8,
    "paft-q1to0-at0.25": lambda step: float(step < 2),
    "garl-qadaptive": lambda _: 1.0,
}


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
        reference.update(groups, step, MOVING[arm](step) if arm in MOVING else None)
        assert difference(policy, plain_policy) < 1e-6
        assert report.grad_norm == pytest.approx(reference.norm, rel=1e-4)
        assert report.loss == pytest.approx(reference.loss, rel=1e-4)
    assert difference(policy, before) > 1e-3
    trained.close()


@pytest.mark.parametrize(
    "arm", ["garl-q0.75", "garl-debiased-q0.75", "garl-score-q0.75", "paft-q0.75", "garl-q1to0", "garl-qeach"]
)
@pytest.mark.parametrize("switch", [{"normalize": False}, {"baseline": False}, {"schedule": "constant"}], ids=str)
def test_every_switch_has_its_effect(
    arm: str, switch: dict[str, Any], new_policy: NewPolicy, plain_policy: PreTrainedModel
) -> None:
    chosen = {"optimizer": "sgd", "learning_rate": 0.3} | switch
    policy, reference = new_policy(), ByHand(plain_policy, Arm.parse(arm), settings(**chosen))
    trained = trainer(policy, arm, **chosen)
    trained.update(make_groups(arm), 5)
    reference.update(make_groups(arm), 5, MOVING[arm](5) if arm in MOVING else None)
    assert difference(policy, plain_policy) < 1e-6
    trained.close()


@pytest.mark.parametrize(
    ("arm", "turn", "same", "q"),
    [
        ("garl-paft-q0.75", Turn(Method.GARL, 0.75), "garl-q0.75", None),
        ("garl-paft-q0.75", Turn(Method.PAFT, 0.75), "paft-q0.75", None),
        ("garl-qadaptive", Turn(Method.GARL, 0.6), "garl-qadaptive", 0.6),
        ("paft-qadaptive", Turn(Method.PAFT, 0.3), "paft-qadaptive", 0.3),
    ],
)
def test_an_update_does_what_its_turn_says(
    arm: str, turn: Turn, same: str, q: float | None, new_policy: NewPolicy, plain_policy: PreTrainedModel
) -> None:
    chosen = {"optimizer": "sgd", "learning_rate": 0.3}
    policy, reference = new_policy(), ByHand(plain_policy, Arm.parse(same), settings(**chosen))
    trained = trainer(policy, arm, **chosen)
    trained.update(make_groups(arm), 2, turn)
    reference.update(make_groups(arm), 2, q)
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


@pytest.mark.parametrize("arm", ["grpo", "star", "garl-q0.75", "garl-score-q0.75", "garl-qeach", "paft-q0.75"])
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


# Ways to train


def test_paft_reads_again_what_it_drew_where_that_is_cheaper_and_the_weights_are_the_same(
    new_policy: NewPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind all rationales but one stands an answer that is much longer, so that this one is drawn."""
    groups = [
        replace(group, answers=[answer if m == 1 else 6 * answer for m, answer in enumerate(group.answers)])
        for group in make_groups("paft")
    ]
    read = sum(part.tokens for part in whole(groups))
    drawn = sum(GroupSlice(group, (1,)).tokens for group in groups)
    policies = {}
    for cheaper, passes in ((True, [read, drawn]), (False, [read])):
        policy, ids = policies.setdefault(cheaper, new_policy()), []
        with monkeypatch.context() as patch:
            if not cheaper:
                patch.setattr(Trainer, "_should_recompute", lambda *_: False)
            trained = trainer(policy, "paft-q0.75")
            embeddings = policy.get_input_embeddings()
            embeddings.register_forward_pre_hook(lambda _, given, ids=ids: ids.append(given[0].numel()))
            report = trained.update(groups, 0)
            trained.close()
        assert ids == passes
        assert report.trained == len(groups) < report.rollouts == 3 * M
    assert difference(policies[True], policies[False]) < 1e-6
    assert difference(policies[True], new_policy()) > 5e-4


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


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_adapters_train_alone_and_are_merged_for_sampler_and_checkpoint(
    stage: int, policy_folder: Path, plain_policy: PreTrainedModel, tmp_path: Path
) -> None:
    start_ranks()
    chosen = settings(zero_stage=stage, lora_rank=2, learning_rate=0.01)
    policy, base = load_policy(policy_folder, chosen, dtype="float32"), state(plain_policy)
    trained = Trainer(policy, Arm.parse("garl-q0.75"), chosen, seed=7)
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
    policy = load_policy(policy_folder, chosen, dtype="float32")
    resumed = Trainer(policy, Arm.parse("garl-q0.75"), chosen, seed=8)
    resumed.load(tmp_path)
    assert difference(state(resumed.policy), merged) == 0
    resumed.close()


# Validation


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
