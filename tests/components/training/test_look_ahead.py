"""The look-ahead, small: every figure against what it is made of, and a base model that stays as it was."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from components.config import Arm, Settings
from components.data.prepare import example, load_split
from components.forecast import Forecast
from components.policy.base import make_base
from components.policy.logprobs import Scorer
from components.policy.model import Codec, load_model, load_tokenizer
from components.probe import grpo_signal, log_success
from components.rollout.transformers_engine import TransformersEngine
from components.training.look_ahead import look_ahead, with_gradient
from tasks.inputs import make_data
from tests.components.training.by_hand import difference, make_groups, state, trainer
from tests.conftest import small_settings

NewPolicy = Callable[[], PreTrainedModel]

STEPS = 3
SETTINGS = ["arms=[grpo,garl-q0,garl-q1,garl-qadaptive]", f"probe.look_ahead={STEPS}", "train.learning_rate=0.005"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Path]:
    folder, settings = tmp_path_factory.mktemp("look-ahead"), small_settings(*SETTINGS)
    make_data(settings, folder / "data")
    make_base(settings, folder / "base")
    return settings, folder


@pytest.fixture(scope="module")
def forecasts(made: tuple[Settings, Path]) -> dict[str, Forecast]:
    settings, folder = made
    found = look_ahead(settings, [-3.0, None], data=folder / "data", base=folder / "base")
    assert [item.arm for item in found] == settings.arm_names
    return {item.arm: item for item in found}


# Its parts


@pytest.mark.parametrize("arm", ["grpo", "garl-q0.75", "paft-q1"])
@pytest.mark.parametrize("bound", [1, 10**6], ids=["many batches", "one batch"])
def test_the_gradient_is_that_of_an_update_which_is_not_taken(arm: str, bound: int, new_policy: NewPolicy) -> None:
    policy = new_policy()
    before = state(policy)
    trained = trainer(policy, arm, optimizer="sgd", learning_rate=1.0, schedule="constant", micro_batch_tokens=bound)
    groups = make_groups(arm)
    gradient, report = trained.gradient(groups, 0)
    assert difference(policy, before) == 0
    assert gradient.norm() > 0
    assert len(report.p) == len(groups)
    updated = trained.update(groups, 0)
    assert updated.grad_norm == pytest.approx(gradient.norm().item(), rel=1e-5)
    moved = torch.cat([(before[name] - weight).flatten() for name, weight in policy.named_parameters()])
    torch.testing.assert_close(moved, gradient, rtol=1e-3, atol=1e-6)
    trained.close()


def test_the_share_of_examples_with_a_gradient_by_hand() -> None:
    p = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert with_gradient(Arm.parse("grpo"), p, 2) == pytest.approx(0.5 / 3)
    assert with_gradient(Arm.parse("rloo"), p, 2) == pytest.approx(0.5 / 3)
    assert with_gradient(Arm.parse("star"), p, 2) == pytest.approx((0.75 + 1) / 3)
    assert with_gradient(Arm.parse("garl-q1"), p, 2) == pytest.approx(2 / 3)
    assert with_gradient(Arm.parse("grpo"), p, 4) == pytest.approx(grpo_signal(p, 4))


# The whole


def test_before_is_log_p_of_the_base_model_for_every_arm(
    made: tuple[Settings, Path], forecasts: dict[str, Forecast]
) -> None:
    settings, folder = made
    policy = load_model(folder / "base", dtype="float32")
    codec = Codec(load_tokenizer(folder / "base"), settings.model, chat=False)
    held_out = [example(row) for row in load_split(folder / "data", "validation")][: settings.probe.held_out]
    engine = TransformersEngine(policy, codec.markers, batch_rollouts=settings.rollout.batch_rollouts)
    wanted = log_success(engine, Scorer(policy), codec, held_out, settings).tolist()
    assert len(wanted) == 4
    for item in forecasts.values():
        assert item.before == wanted


def test_an_arm_without_a_gradient_changes_nothing(forecasts: dict[str, Forecast]) -> None:
    item = forecasts["grpo"]  # an untrained model is never right
    assert item.after == item.before
    assert (item.gain.value, item.gain.low, item.gain.high) == (0, 0, 0)
    assert (item.gradient.norm, item.gradient.agreement) == (0, None)
    assert (item.gradient.effective_samples, item.gradient.bias) == (None, None)
    assert item.escape_step is None
    assert item.examples_with_gradient == pytest.approx(
        with_gradient(Arm.parse("grpo"), torch.tensor([0.0, math.exp(-3)]).double(), 4)
    )
    assert item.batches_with_gradient == pytest.approx(1 - (1 - item.examples_with_gradient) ** 4)


@pytest.mark.parametrize("arm", ["garl-q1", "garl-qadaptive"])
def test_marginal_likelihood_raises_log_p_of_examples_that_it_did_not_train_on(
    arm: str, forecasts: dict[str, Forecast]
) -> None:
    item = forecasts[arm]
    assert item.gain.low > 0
    assert item.gain.value == pytest.approx(np.mean(np.array(item.after) - np.array(item.before)))
    assert item.gradient.norm > 0
    assert item.gradient.rms == pytest.approx(item.gradient.norm / 99_008**0.5)
    assert item.gradient.agreement is not None
    assert -1 <= item.gradient.agreement <= 1
    assert item.gradient.effective_samples is not None
    assert 1 <= item.gradient.effective_samples <= 4
    assert (item.gradient.bias is None) == (arm == "garl-qadaptive")
    assert item.steps == STEPS


def test_looking_ahead_again_finds_the_same_and_leaves_the_base_model(
    made: tuple[Settings, Path], forecasts: dict[str, Forecast]
) -> None:
    settings, folder = made
    before = (folder / "base" / "model.safetensors").read_bytes()
    again = look_ahead(settings.with_arm("garl-q1"), [-3.0, None], data=folder / "data", base=folder / "base")
    assert again == [forecasts["garl-q1"]]
    assert (folder / "base" / "model.safetensors").read_bytes() == before
