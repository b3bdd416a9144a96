"""The look-ahead, small: every figure against what it is made of, and a base model that stays as it was."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from components.config import Arm, Settings
from components.data.split_files import example, load_split
from components.forecast import Forecast, escape_times
from components.look_ahead import look_ahead, with_gradient
from components.policy.base import make_base
from components.policy.model import Codec, load_model, load_tokenizer
from components.probe import log_success
from components.rollout.engine import Rollout, Sampling
from components.rollout.transformers_engine import TransformersEngine
from components.training.trainer import Trainer
from tasks.inputs import make_data
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


def test_the_share_of_examples_with_a_gradient_by_hand() -> None:
    log_p = [None, math.log(0.5), 0.0]
    assert with_gradient(Arm.parse("grpo"), log_p, 2) == pytest.approx(0.5 / 3)
    assert with_gradient(Arm.parse("rloo"), log_p, 2) == pytest.approx(0.5 / 3)
    assert with_gradient(Arm.parse("star"), log_p, 2) == pytest.approx((0.75 + 1) / 3)
    # A P of e^-800 is no float, and a gradient all the same.
    assert with_gradient(Arm.parse("garl-q1"), [None, -800.0, -1.0, 0.0], 2) == 0.75


# The whole


def test_before_is_log_p_of_the_base_model_for_every_arm(
    made: tuple[Settings, Path], forecasts: dict[str, Forecast]
) -> None:
    settings, folder = made
    policy = load_model(folder / "base", dtype="float32")
    codec = Codec(load_tokenizer(folder / "base"), settings.model, chat=False)
    held_out = [example(row) for row in load_split(folder / "data", "validation")][: settings.probe.held_out]
    engine = TransformersEngine(policy, codec.markers, batch_rollouts=settings.rollout.batch_rollouts)
    trainer = Trainer(policy, Arm.parse("grpo"), settings.train, seed=0)
    wanted = log_success(engine, trainer, codec, held_out, settings).tolist()
    trainer.close()
    assert len(wanted) == 4
    for item in forecasts.values():
        assert item.before == wanted


def test_an_arm_without_a_gradient_changes_nothing(forecasts: dict[str, Forecast]) -> None:
    item = forecasts["grpo"]  # an untrained model is never right
    assert item.after == item.midway == item.before
    assert item.escaped == 0
    assert (item.gain.value, item.gain.low, item.gain.high) == (0, 0, 0)
    assert (item.gradient.norm, item.gradient.agreement) == (0, None)
    assert (item.gradient.effective_samples, item.gradient.bias) == (None, None)
    assert item.escape_step is None
    assert item.examples_with_gradient == with_gradient(Arm.parse("grpo"), [-3.0, None], 4)
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
    assert item.midway not in (item.before, item.after)
    times = escape_times(*(np.array(side) for side in (item.before, item.midway, item.after)), STEPS)
    assert item.escaped == np.mean(times <= item.run_steps)


def test_looking_ahead_again_finds_the_same_and_leaves_the_base_model(
    made: tuple[Settings, Path], forecasts: dict[str, Forecast]
) -> None:
    settings, folder = made
    before = (folder / "base" / "model.safetensors").read_bytes()
    again = look_ahead(settings.with_arm("garl-q1"), [-3.0, None], data=folder / "data", base=folder / "base")
    assert again == [forecasts["garl-q1"]]
    assert (folder / "base" / "model.safetensors").read_bytes() == before


def test_it_looks_no_further_than_a_run_goes(made: tuple[Settings, Path]) -> None:
    """Behind the last step a linear schedule would turn the learning rate around, and q with it."""
    _, folder = made
    settings = small_settings("arms=[garl-q1to0]", "probe.look_ahead=9", "train.steps=2", "train.validate_every=2")
    [item] = look_ahead(settings, [-3.0], data=folder / "data", base=folder / "base")
    assert item.steps == 2


def test_an_engine_that_sleeps_is_given_weights_before_it_samples(
    made: tuple[Settings, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vLLM's sleeping placement does: what it had is gone until it is given weights again."""
    settings, folder = made

    class Sleeper(TransformersEngine):
        awake = False

        def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
            super().load_weights(weights)
            self.awake = True

        def sleep(self) -> None:
            self.awake = False

        def generate(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[list[Rollout]]:
            assert self.awake
            return super().generate(prompts, n, sampling)

    monkeypatch.setattr(
        "components.look_ahead.open_engine",
        lambda _settings, policy, _folder, markers, _peers: Sleeper(policy, markers, batch_rollouts=64),
    )
    found = look_ahead(settings.with_arm("garl-q1"), [-3.0], data=folder / "data", base=folder / "base")
    assert found[0].gain.value > 0
