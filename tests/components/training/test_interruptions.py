"""An interruption changes nothing, wherever it falls; nor does a pause, and a stop ends the run early."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.errors import UserError
from components.policy.base import make_base
from components.rollout.transformers_engine import TransformersEngine
from components.tracking.registry import Registry
from components.tracking.runs import Run, Tracker
from components.training import loop
from components.training.record import RECORD
from components.training.trainer import Trainer
from tests.components.training.runs import Experiment, Reference, figures, files, repeatable, switches
from tests.conftest import small_settings


class Interrupted(Exception):
    pass


def at_call(number: int, method: Callable[..., Any], *, after: bool = False) -> Callable[..., Any]:
    """The method, but for its call of that number (from 1), interrupted before it begins or after it is done."""
    calls = 0

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and not after:
            raise Interrupted
        result = method(*arguments, **options)
        if calls == number:
            raise Interrupted
        return result

    return interrupted


def runs_of(tracker: Tracker) -> list[Any]:
    """All MLflow runs that trained an arm."""
    return [*tracker.store.client.search_runs([tracker.store.experiment_id], "params.arm != ''")]


# What is interrupted at which call, with checkpoints after step 2 and step 4; generate is also called to validate.
INTERRUPTIONS = {
    "making the MLflow run": (Tracker, "run", 1, True),
    "sampling the first step": (TransformersEngine, "generate", 1, False),
    "sampling the third step": (TransformersEngine, "generate", 4, False),
    "updating in the fourth step": (Trainer, "update", 4, True),
    "logging the third step": (Run, "metrics", 3, True),
    "validating the last step": (TransformersEngine, "generate", 6, False),
    "registering the first checkpoint": (Run, "register", 1, True),
    "registering the last checkpoint": (Run, "register", 2, True),
    "saving the first state": (Trainer, "save", 1, True),
    "saving the last state": (Trainer, "save", 2, True),
    "writing the curves at the end": (loop, "write_curves", 1, False),
    "ending the MLflow run": (Run, "__exit__", 1, True),
    "choosing the best version": (Registry, "set_best", 1, True),
}


@pytest.mark.parametrize("interruption", INTERRUPTIONS.values(), ids=INTERRUPTIONS.keys())
def test_an_interrupted_run_ends_as_if_nothing_had_happened(
    interruption: tuple[Any, str, int, bool],
    experiment: Experiment,
    reference: Reference,
    tracker: Tracker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, name, number, after = interruption
    with monkeypatch.context() as patch:
        patch.setattr(place, name, at_call(number, getattr(place, name), after=after))
        with pytest.raises(Interrupted):
            experiment.train(tmp_path / "out", tracker)
    assert not (tmp_path / "out" / RECORD).exists()

    record = experiment.train(tmp_path / "out", tracker)
    assert repeatable(record) == repeatable(reference.record)
    assert files(tmp_path / "out") == files(reference.out)
    assert figures(tracker, record.mlflow_run_id) == figures(reference.tracker, reference.record.mlflow_run_id)

    statuses = {run.info.run_id: run.info.status for run in runs_of(tracker)}
    assert statuses == {record.mlflow_run_id: "FINISHED"}  # the same run goes on, before its first state, too
    steps = [version.step for version in tracker.registry.versions() if version.run_id == record.mlflow_run_id]
    assert steps == [2, 4]


def test_what_is_left_of_a_run_behind_its_record_is_removed_but_not_the_state_of_another(
    experiment: Experiment, tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "forget", at_call(1, loop.forget))
        with pytest.raises(Interrupted):
            experiment.train(out, tracker)
    assert (out / RECORD).exists()
    assert (out / "state").exists()
    shutil.copytree(out / "state", tmp_path / "other")
    record = experiment.train(out, tracker)
    assert not (out / "state").exists()
    [(status, ended)] = [(run.info.status, run.info.run_id) for run in runs_of(tracker)]
    assert (status, ended) == ("FINISHED", record.mlflow_run_id)

    [state] = (tmp_path / "other").glob("*/state.json")
    content = json.loads(state.read_text())
    state.write_text(json.dumps(content | {"identity": content["identity"] | {"seed": 1}}))
    shutil.copytree(tmp_path / "other", out / "state")
    experiment.train(out, tracker)
    assert (out / "state").exists()


@pytest.mark.usefixtures("unstable")
@pytest.mark.parametrize("arm", ["garl-q1to0", "garl-qadaptive", "garl-paft-q0.75"])
def test_what_moves_goes_on_behind_an_interruption_as_if_nothing_had_happened(
    arm: str, experiment: Experiment, tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six steps, interrupted in the sixth: the fifth and the sixth are done again from the checkpoint of the fourth."""
    longer = replace(experiment, settings=small_settings("train.steps=6"))
    steady = longer.train(tmp_path / "steady", tracker, arm=arm)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", at_call(6, Trainer.update, after=True))
        with pytest.raises(Interrupted):
            longer.train(tmp_path / "out", tracker, arm=arm)
    assert (tmp_path / "out" / "state" / "step-4").exists()
    record = longer.train(tmp_path / "out", tracker, arm=arm)
    assert repeatable(record) == repeatable(steady)
    assert files(tmp_path / "out") == files(tmp_path / "steady")
    assert figures(tracker, record.mlflow_run_id) == figures(tracker, steady.mlflow_run_id)
    assert switches(tracker, record) == switches(tracker, steady)


def test_checkpoints_that_were_cleared_away_meanwhile_come_back(
    experiment: Experiment,
    reference: Reference,
    tracker: Tracker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As DVC does with a stage's outputs before it runs the stage again."""
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", at_call(3, Trainer.update))
        with pytest.raises(Interrupted):
            experiment.train(tmp_path / "out", tracker)
    checkpoints = tmp_path / "out" / "checkpoints"
    shutil.rmtree(checkpoints)
    for left in ("step-4.partial", "step-4", ".download-abc"):  # by a kill
        (checkpoints / left).mkdir(parents=True)
    (checkpoints / "mine.txt").write_text("of the run's owner")
    experiment.train(tmp_path / "out", tracker)
    assert (checkpoints / "mine.txt").read_text() == "of the run's owner"
    (checkpoints / "mine.txt").unlink()
    assert {path.name for path in checkpoints.iterdir()} == {"step-2", "step-4"}
    assert files(tmp_path / "out") == files(reference.out)


def test_a_run_that_pauses_goes_on_as_if_nothing_had_happened(
    experiment: Experiment, reference: Reference, tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert experiment.train_until(2, out, tracker) is None
    assert (out / "state" / "step-2").exists()
    assert not (out / RECORD).exists()
    with monkeypatch.context() as patch:  # there is nothing left to do until then
        patch.setattr(loop, "_ArmRun", None)
        assert experiment.train_until(2, out, tracker) is None
        with pytest.raises(UserError, match=r"arm: garl-q0\.75 there, garl-q1 now"):
            experiment.train_until(2, out, tracker, arm="garl-q1")
    record = experiment.train(out, tracker)
    assert repeatable(record) == repeatable(reference.record)
    assert files(out) == files(reference.out)
    assert figures(tracker, record.mlflow_run_id) == figures(reference.tracker, reference.record.mlflow_run_id)
    with pytest.raises(UserError, match=r"--until 3: a run pauses where it is validated; write a multiple of .* = 2"):
        experiment.train_until(3, out, tracker)


def test_a_run_that_a_race_stopped_ends_there_and_says_why(
    experiment: Experiment, reference: Reference, tracker: Tracker, tmp_path: Path
) -> None:
    stopped = replace(experiment, settings=small_settings('race.stopped={garl-q0.75: {step: 2, reason: "a test"}}'))
    record = stopped.train(tmp_path / "out", tracker)
    assert (record.steps, record.stopped) == (2, "a test")
    checkpoint = "checkpoints/step-2/model.safetensors"
    assert files(tmp_path / "out")[checkpoint] == files(reference.out)[checkpoint]
    assert record.validated["2"] == reference.record.validated["2"]
    tags = tracker.store.client.get_run(record.mlflow_run_id).data.tags
    assert (tags["thaw.stopped.step"], tags["thaw.stopped.reason"]) == ("2", "a test")
    with pytest.raises(UserError, match=r"race\.stopped: a test there, None now"):
        experiment.train(tmp_path / "out", tracker)

    assert experiment.train_until(4, tmp_path / "further", tracker) is None
    with pytest.raises(UserError, match=r"step-4 is beyond step 2, at which the race stopped garl-q0\.75; delete"):
        stopped.train(tmp_path / "further", tracker)


def test_a_state_of_another_run_is_refused(
    experiment: Experiment, tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", at_call(3, Trainer.update))
        with pytest.raises(Interrupted):
            experiment.train(tmp_path / "out", tracker)
    before = files(tmp_path / "out")
    with pytest.raises(UserError, match=r"step-2 belongs to another run \(arm: garl-q0\.75 there, garl-q1 now\)"):
        experiment.train(tmp_path / "out", tracker, arm="garl-q1")
    changed = replace(experiment, base=tmp_path / "base")
    make_base(small_settings("teaching.seed=1"), changed.base)
    with pytest.raises(UserError, match=r"\(base: \w+\.dir there, \w+\.dir now\)"):
        changed.train(tmp_path / "out", tracker)
    assert files(tmp_path / "out") == before
