"""Rollouts a step stale: whose weights they are of, what runs at the same time, and that interruptions change nothing.

A copy of the model stands in for the server's; tests/components/training/test_lost_on_ranks.py has a real one.
"""

import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from components.config import Settings
from components.errors import UserError
from components.policy.markers import Markers
from components.policy.model import load_model
from components.rollout.engine import Peers, Rollout, Sampling
from components.rollout.transformers_engine import TransformersEngine
from components.tracking.runs import Tracker
from components.training import loop
from components.training.trainer import Trainer
from tests.components.models import plain_logprobs
from tests.components.training.runs import Experiment, curve, figures, files, repeatable
from tests.components.training.test_interruptions import Interrupted, at_call
from tests.conftest import small_settings


class Sampler(TransformersEngine):
    """Samples from a model of its own, as a server does, and notes what it samples from which weights."""

    noted: list[tuple[PreTrainedModel, list[list[Rollout]]]] = []  # noqa: RUF012
    begun = 0  # calls in training
    samples = False

    def generate(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[list[Rollout]]:
        self.samples = True
        type(self).begun += not sampling.answers  # in training, not in validation
        weights = deepcopy(self.model)
        rollouts = super().generate(prompts, n, sampling)
        self.samples = False
        if not sampling.answers:
            self.noted.append((weights, rollouts))
        return rollouts

    def load_weights(self, weights: Any) -> None:
        assert not self.samples
        super().load_weights(weights)


def stale(*overrides: str) -> Settings:
    """Settings for staleness 1, which only servers are let have."""
    settings = small_settings("train.importance_weights=truncated", "train.learning_rate=0.01", *overrides)
    return settings.model_copy(update={"rollout": settings.rollout.model_copy(update={"staleness": 1})})


@pytest.fixture(autouse=True)
def sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(settings: Settings, _policy: PreTrainedModel, base: Path, markers: Markers, _peers: Peers) -> Sampler:
        return Sampler(load_model(base), markers, batch_rollouts=settings.rollout.batch_rollouts)

    monkeypatch.setattr(loop, "open_engine", opened)
    monkeypatch.setattr(Sampler, "noted", [])
    monkeypatch.setattr(Sampler, "begun", 0)


def test_a_steps_rollouts_are_of_the_weights_before(experiment: Experiment, tracker: Tracker, tmp_path: Path) -> None:
    replace(experiment, settings=stale()).train(tmp_path / "out", tracker)
    base, then = load_model(experiment.base), load_model(tmp_path / "out" / "checkpoints" / "step-2")
    assert len(Sampler.noted) == 4
    # Steps are counted from 0: the first two are of the base model, the last one of what two updates made of it.
    for step, model in ((0, base), (1, base), (3, then)):
        weights, rollouts = Sampler.noted[step]
        assert same(weights, model), step
        one = rollouts[0][0]
        logprobs = plain_logprobs(model, one.prompt_ids, one.rationale_ids)[: len(one.rationale_ids) - one.forced_end]
        assert list(one.logprobs[: len(logprobs)]) == pytest.approx(logprobs.tolist(), abs=1e-4)
    # What the trainer's weights and theirs differ in is an update, and none at the first step.
    first, *later = curve(tmp_path / "out", "mismatch/max_abs")
    assert first < 1e-4
    assert min(later) > 1e-3


def same(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_sampling_and_updating_run_at_the_same_time(
    experiment: Experiment, tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each update waits until sampling has begun beside it; the last one has nothing beside it."""
    update, beside = Trainer.update, []

    def watched(self: Trainer, *arguments: Any) -> Any:
        deadline = time.monotonic() + 60
        while Sampler.begun < min(4, len(beside) + 2) and time.monotonic() < deadline:
            time.sleep(0.001)
        beside.append(Sampler.begun)
        return update(self, *arguments)

    monkeypatch.setattr(Trainer, "update", watched)
    replace(experiment, settings=stale()).train(tmp_path / "out", tracker)
    assert beside == [2, 3, 4, 4]


@pytest.mark.parametrize(
    ("place", "number", "after"),
    [("update", 2, True), ("update", 3, False), ("save", 1, True), ("update", 4, True)],
    ids=["before the first state", "at the first step behind it", "saving it", "at the last step"],
)
def test_an_interrupted_run_trains_on_what_was_sampled_ahead(
    place: str,
    number: int,
    after: bool,
    experiment: Experiment,
    tracker: Tracker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    behind = replace(experiment, settings=stale())
    steady = behind.train(tmp_path / "steady", tracker)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, place, at_call(number, getattr(Trainer, place), after=after))
        with pytest.raises(Interrupted):
            behind.train(tmp_path / "out", tracker)
    record = behind.train(tmp_path / "out", tracker)
    assert repeatable(record) == repeatable(steady)
    assert files(tmp_path / "out") == files(tmp_path / "steady")
    assert figures(tracker, record.mlflow_run_id) == figures(tracker, steady.mlflow_run_id)


def test_a_run_that_pauses_goes_on_from_what_was_sampled_ahead(
    experiment: Experiment, tracker: Tracker, tmp_path: Path
) -> None:
    behind = replace(experiment, settings=stale())
    steady = behind.train(tmp_path / "steady", tracker)
    behind.train_until(2, tmp_path / "out", tracker)
    assert repeatable(behind.train(tmp_path / "out", tracker)) == repeatable(steady)
    assert files(tmp_path / "out") == files(tmp_path / "steady")


def test_rewards_are_counted_again_for_what_was_sampled_ahead(
    experiment: Experiment, tracker: Tracker, tmp_path: Path
) -> None:
    behind = replace(experiment, settings=stale())
    behind.train(tmp_path / "steady", tracker, arm="grpo")
    behind.train_until(2, tmp_path / "out", tracker, arm="grpo")
    behind.train(tmp_path / "out", tracker, arm="grpo")
    assert files(tmp_path / "out") == files(tmp_path / "steady")


def test_an_error_while_sampling_ahead_ends_the_run(
    experiment: Experiment, tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "generate", at_call(2, Sampler.generate))
        with pytest.raises(Interrupted):
            replace(experiment, settings=stale()).train(tmp_path / "out", tracker)
    assert [path.name for path in (tmp_path / "out" / "state").iterdir()] == ["begun"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["rollout.staleness=1"],
            r"rollout\.staleness = 1 samples while .*: set rollout\.engine to vllm",
        ),
        (
            ["rollout.staleness=1", "rollout.engine=vllm", "rollout.placement=server"],
            r"rollout\.staleness = 1 trains on rollouts of older weights: set train\.importance_weights to truncated",
        ),
        (["rollout.staleness=2"], r"rollout\.staleness = 2: Input should be less than or equal to 1"),
    ],
)
def test_staleness_is_refused_where_it_cannot_work(overrides: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        small_settings(*overrides)
