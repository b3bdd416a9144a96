"""Scorer, Trainer and sampler on another device than the CPU: no tensor stays behind, and the numbers are the same."""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from components.config import Arm, TrainSettings
from components.policy.logprobs import Scorer
from components.policy.markers import Markers
from components.rollout.engine import Sampling
from components.rollout.transformers_engine import TransformersEngine
from components.training import trainer as training
from components.training.trainer import Trainer
from components.training.update_report import UpdateReport
from tests.components import elsewhere
from tests.components.training.by_hand import make_groups, settings

NewPolicy = Callable[[], PreTrainedModel]


class Plain:
    """What of DeepSpeed's engine an update uses, by PyTorch alone: DeepSpeed knows but the machine's own device."""

    def __init__(self, scorer: Scorer, settings: TrainSettings) -> None:
        self.scorer = scorer
        self.optimizer = torch.optim.SGD(scorer.parameters(), settings.learning_rate)
        self.parameters = scorer.parameters

    def __call__(self, batch: Any) -> Tensor:
        return self.scorer(batch)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def set_gradient_accumulation_boundary(self, is_last: bool) -> None: ...

    def empty_partition_cache(self) -> None: ...

    def zero_grad(self) -> None: ...

    def destroy(self) -> None: ...


def update(policy: PreTrainedModel, arm: str, change: dict[str, Any]) -> UpdateReport:
    trainer = Trainer(policy, Arm.parse(arm), settings(**change), seed=7)
    report = trainer.update(make_groups(arm), 0)
    trainer.close()
    return report


@pytest.mark.parametrize("arm", ["garl-q0.75", "paft-q0.5", "grpo", "garl-qeach"])
@pytest.mark.parametrize(
    "change",
    [{}, {"micro_batch_tokens": 8}, {"importance_weights": "truncated", "importance_level": "token"}],
    ids=["at once", "in slices", "weighed"],
)
def test_an_update_on_another_device(
    arm: str, change: dict[str, Any], new_policy: NewPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "open_deepspeed", Plain)
    here, there = new_policy(), new_policy()
    wanted = update(here, arm, change)
    with elsewhere.device(there):
        found = update(there, arm, change)
        assert found.metrics() == pytest.approx(wanted.metrics())
        for (name, weight), moved in zip(here.named_parameters(), there.parameters(), strict=True):
            assert isinstance(moved.data, elsewhere.Elsewhere)
            torch.testing.assert_close(moved.data.held, weight.data, msg=name)


def test_sampling_on_another_device(new_policy: NewPolicy) -> None:
    prompts, markers = [(1, 2, 3), (4,)], Markers(end_of_thinking=(5, 6), end_of_turn=(7,), pad=0)

    def rollouts(policy: PreTrainedModel) -> Any:
        engine = TransformersEngine(policy, markers, batch_rollouts=8)
        return engine.generate(prompts, 4, Sampling(9, 3, seed=0))

    here, there = new_policy(), new_policy()
    wanted = rollouts(here)
    with elsewhere.device(there):
        found = rollouts(there)
    for one, other in zip(chain(*found), chain(*wanted), strict=True):
        assert replace(one, logprobs=()) == replace(other, logprobs=())
        assert one.logprobs == pytest.approx(other.logprobs)


def test_a_tensor_left_behind_is_found(new_policy: NewPolicy) -> None:
    policy = new_policy()
    with elsewhere.device(policy), pytest.raises(AssertionError, match="of tensors on both devices"):
        policy(input_ids=torch.tensor([[1, 2]]))
