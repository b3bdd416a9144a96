"""The gradient that an update would follow, without the update."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from tests.components.training.by_hand import make_groups, trainer

NewPolicy = Callable[[], PreTrainedModel]


@pytest.mark.parametrize("arm", ["grpo", "garl-q0.75", "paft-q1"])
@pytest.mark.parametrize(("stage", "bound"), [(0, 1), (0, 10**6), (2, 1), (3, 1), (3, 10**6)])
def test_the_gradient_is_that_of_an_update_which_is_not_taken(
    arm: str, stage: int, bound: int, new_policy: NewPolicy
) -> None:
    """ZeRO's stages 2 and 3 shard gradients and weights, and batches are many or one."""
    chosen = {"optimizer": "sgd", "learning_rate": 1.0, "schedule": "constant"}
    trained = trainer(new_policy(), arm, zero_stage=stage, micro_batch_tokens=bound, **chosen)
    before = {name: weight.clone() for name, weight in trained.weights()}
    names = [name.removeprefix("policy.") for name, _ in trained.scorer.named_parameters()]
    groups = make_groups(arm)
    gradient, report = trained.gradient(groups, 0)
    assert all(torch.equal(weight, before[name]) for name, weight in trained.weights())
    assert gradient.norm() > 0
    assert len(report.p) == len(groups)
    updated = trained.update(groups, 0)
    assert updated.grad_norm == pytest.approx(gradient.norm().item(), rel=1e-4)
    after = {name: weight.clone() for name, weight in trained.weights()}
    moved = torch.cat([(before[name] - after[name]).flatten() for name in names])
    torch.testing.assert_close(moved, gradient, rtol=1e-3, atol=1e-6)
    trained.close()
