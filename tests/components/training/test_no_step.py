"""Steps that are not taken: those without a gradient, and those with one that is not finite."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from components.config import Arm
from components.errors import UserError
from components.training.trainer import Trainer
from tests.components.training.by_hand import (
    ByHand,
    NewPolicy,
    difference,
    make_groups,
    settings,
    state,
    trainer,
    useless,
)

# Groups without a gradient


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
