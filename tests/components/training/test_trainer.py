"""One update against the same update by hand: the weights that it leaves, in every way to train."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from components.config import Arm
from components.methods import Method
from components.policy.logprobs import Scorer
from components.training.batches import GroupSlice
from components.training.trainer import Trainer
from components.training.turn import Turn
from components.training.zero import load_policy, start_ranks
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
