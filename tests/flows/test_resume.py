"""Killed in the middle and run again: the same weights as if nothing had happened, in the same MLflow run."""

import json
import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from components.data.digest import dvc_md5
from tests.flows.conftest import Swept, Thaw
from tests.flows.scratch import Scratch, heed_signals, until
from tests.terminal import Terminal

pytestmark = pytest.mark.slow

STEPS = [4, 8, 12, 16]


def kill_in_the_middle(process: subprocess.Popen[str], out: Path) -> int:
    """kill -9 for the whole process group once a state was saved; the step that it was saved at."""
    try:
        until(lambda: process.poll() is not None or any(out.glob("state/step-*[0-9]")))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it had ended by itself"
    assert not (out / "train.json").exists(), "it was killed too late"
    return max(int(path.name.removeprefix("step-")) for path in out.glob("state/step-*[0-9]"))


def check_same_run(project: Scratch, out: Path, undisturbed: Path) -> None:
    """The checkpoints of both, byte by byte, and one MLflow run with every step and every version."""
    assert (out / "final/model.safetensors").read_bytes() == (undisturbed / "final/model.safetensors").read_bytes()
    assert dvc_md5(out / "final") == dvc_md5(undisturbed / "final")
    assert dvc_md5(out / "checkpoints") == dvc_md5(undisturbed / "checkpoints")
    assert (out / "curves.csv").read_bytes() == (undisturbed / "curves.csv").read_bytes()
    assert not (out / "state").exists()

    record = json.loads((out / "train.json").read_text())
    tracker = project.tracker()
    client = tracker.store.client
    run = client.get_run(record["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    steps = {value.step for value in client.get_metric_history(run.info.run_id, "train/p_estimate")}
    assert steps == set(range(1, 17))
    assert [version.step for version in tracker.registry.versions() if version.run_id == run.info.run_id] == STEPS
    siblings = client.search_runs(
        [run.info.experiment_id], f"tags.mlflow.parentRunId = '{run.data.tags['mlflow.parentRunId']}'"
    )
    assert [found.info.run_name for found in siblings].count(run.info.run_name) == 1


@pytest.fixture(scope="module")
def repeated(fresh: Scratch, tmp_path_factory: pytest.TempPathFactory) -> Scratch:
    """A second fresh clone in which `dvc repro` trained two arms, and was killed once on the way."""
    project = fresh.copy(tmp_path_factory.mktemp("repeated") / "project")
    command = ("dvc", "repro", "train@paft-q0.75-0")
    kill_in_the_middle(project.start(*command), project.folder / "build/train/paft-q0.75/0")
    project.run(*command, "train@garl-q0.75-0")
    return project


def test_dvc_repro_in_a_fresh_clone_gives_the_bytes_that_the_flow_gave_with_two_arms_at_a_time(
    repeated: Scratch, swept: Swept
):
    build = repeated.folder / "build"
    for path in ("data", "base", "train/garl-q0.75/0/checkpoints", "train/paft-q0.75/0/checkpoints"):
        assert dvc_md5(build / path) == dvc_md5(swept[path]), path
    for arm in ("garl-q0.75", "paft-q0.75"):
        weights = f"train/{arm}/0/final/model.safetensors"
        assert (build / weights).read_bytes() == swept[weights].read_bytes(), arm


def test_arms_differ_from_each_other_and_from_the_base_model(swept: Swept):
    """Else equal bytes would show nothing."""
    folders = ["base", "train/garl-q0.75/0/checkpoints/step-4", "train/garl-q0.75/0/final", "train/paft-q0.75/0/final"]
    assert len({swept[f"{folder}/model.safetensors"].read_bytes() for folder in folders}) == 4


def test_a_killed_dvc_repro_goes_on_and_keeps_every_checkpoint(repeated: Scratch, swept: Swept):
    """DVC removes the outputs of a stage that it runs again, and with them the checkpoints before the kill."""
    path = "train/paft-q0.75/0"
    check_same_run(repeated, repeated.folder / "build" / path, swept[path])
    assert not {stage for stage in repeated.stale() if stage.startswith("train@") and "grpo" not in stage}


def interrupt_at_a_terminal(project: Scratch, command: list[str], out: Path) -> str:
    """Ctrl-C once a state was saved; all that the terminal was told."""
    terminal = Terminal()
    watched = project.environment | {"CI": "", "TERM": "xterm"}
    options = {"cwd": project.folder, "env": watched, "stdout": terminal.file, "stderr": terminal.file}
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=heed_signals, **options)
    try:
        until(lambda: process.poll() is not None or any(out.glob("state/step-*[0-9]")))
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return terminal.close()


def test_an_interrupted_training_goes_on_then_does_nothing_and_refuses_other_settings(
    copied: Scratch, swept: Swept, thaw: Thaw
):
    out = copied.folder / "runs/mine"
    train = ["thaw", "train", "--arm", "garl-q0.75", "--out", "runs/mine"]
    said = interrupt_at_a_terminal(copied, train, out)
    line = (
        r"\rtrain garl-q0\.75 seed 0: +\d+%\|[^\r]*\| \d+/16, \d\d:\d\d left, P \S+, [^\r]*\d s/step, [\d,]+ tokens/s"
    )
    assert re.search(line, said), said
    step = max(int(path.name.removeprefix("step-")) for path in out.glob("state/step-*[0-9]"))
    kept = f"runs/mine has kept all up to step {step}; `{' '.join(train)}` goes on from there."
    assert said.endswith(f"\r\ninterrupted: {kept}\r\n"), said
    stands = thaw(copied.folder, "status", "runs/mine").out
    assert stands.startswith(f"runs/mine: stopped at step {step} of 16;")
    state = json.loads((out / f"state/step-{step}/state.json").read_text())
    other = thaw(copied.folder, *train[1:], "--set", "train.learning_rate=0.5")
    assert other.status == 2
    assert f"error: runs/mine/state/step-{step} belongs to another run" in other.err
    assert "settings.train.learning_rate: 0.01 there, 0.5 now" in other.err

    copied.run(*train)
    record = (out / "train.json").read_bytes()
    assert json.loads(record)["mlflow_run_id"] == state["mlflow_run_id"]
    undisturbed = swept["train/garl-q0.75/0"]
    assert (out / "final/model.safetensors").read_bytes() == (undisturbed / "final/model.safetensors").read_bytes()
    assert dvc_md5(out / "checkpoints") == dvc_md5(undisturbed / "checkpoints")

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert thaw(copied.folder, *train[1:]).status == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    other = thaw(copied.folder, *train[1:], "--set", "train.steps=20")
    assert other.status == 2
    assert other.err.startswith("error: runs/mine belongs to another run (settings.train.steps: 16 there, 20 now);")
    assert (out / "train.json").read_bytes() == record
