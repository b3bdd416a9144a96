"""What may happen to a sweep on a bad day: a clear end, nothing lost, and the same weights when it is run again."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.flows.conftest import Swept
from tests.flows.scratch import Scratch, built_in, trainer, until
from tests.flows.test_resume import check_same_run

pytestmark = pytest.mark.slow

ARM = "build/train/paft-q0.75/0"
TRAIN = "train@paft-q0.75-0"
ENDED = {"COMPLETED", "FAILED", "CRASHED"}
RERUN = {TRAIN, "evaluate@paft-q0.75-0", "report"}


@pytest.fixture
def untrained(copied: Scratch) -> Scratch:
    """The swept project with one arm untrained, which neither DVC nor MLflow remembers."""
    copied.untrain("paft-q0.75")
    shutil.rmtree(copied.folder / "mlartifacts")
    (copied.folder / "mlflow.db").unlink()
    return copied


def saved(project: Scratch) -> int:
    """The step that training would go on from."""
    found = (project.folder / ARM / "state").glob("step-*[0-9]")
    return max((int(path.name.removeprefix("step-")) for path in found), default=0)


def states(project: Scratch, run: str) -> tuple[str, set[str]]:
    """What kind of state a flow run and its tasks are in, as Prefect's database has it."""
    with sqlite3.connect(project.prefect / "prefect.db") as database:
        [(key, state)] = database.execute("SELECT id, state_type FROM flow_run WHERE name = ?", [run]).fetchall()
        tasks = database.execute("SELECT state_type FROM task_run WHERE flow_run_id = ?", [key]).fetchall()
    return state, {state for (state,) in tasks}


def test_a_killed_trainer_is_tried_again_and_a_killed_sweep_goes_on(untrained: Scratch, swept: Swept):
    sweep = untrained.start("thaw", "sweep")
    try:
        first = until(lambda: saved(untrained) and trainer(sweep.pid))
        os.kill(first, signal.SIGKILL)
        step = saved(untrained)
        until(lambda: saved(untrained) > step)
        assert trainer(sweep.pid) not in (0, first)
        below = psutil.Process(sweep.pid).children(recursive=True)
    finally:
        sweep.send_signal(signal.SIGKILL)
        sweep.wait()
    assert psutil.wait_procs(below, 30)[1] == []
    log = untrained.folder.with_suffix(".log").read_text()
    assert f"stage {TRAIN} was killed by signal 9" in log
    assert "Retry 1/2" in log
    assert not (untrained.folder / ARM / "train.json").exists(), "it was killed too late"
    [run] = [line.split("'")[1] for line in log.splitlines() if "Beginning flow run" in line]
    flow, tasks = states(untrained, run)
    assert flow == "RUNNING"
    assert tasks - ENDED

    assert built_in(untrained.run("thaw", "sweep")) == RERUN
    assert untrained.stale() == set()
    check_same_run(untrained, untrained.folder / ARM, swept["train/paft-q0.75/0"])
    flow, tasks = states(untrained, run)
    assert flow == "CRASHED"
    assert "CRASHED" in tasks
    assert not tasks - ENDED


@pytest.fixture
def small_disk(untrained: Scratch) -> Iterator[Path]:
    """A file system of 2 MB where the arm writes: enough for one checkpoint and what resuming takes."""
    folder = untrained.folder / ARM
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2M", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_told_and_with_room_the_sweep_completes(untrained: Scratch, swept: Swept, small_disk: Path):
    log = untrained.run("thaw", "sweep", status=2)
    assert f"error: stage {TRAIN}: the disk is full; make room and run again" in log
    assert "Retry" not in log
    subprocess.run(["mount", "-o", "remount,size=50M", str(small_disk)], check=True)
    assert built_in(untrained.run("thaw", "sweep")) == RERUN
    assert untrained.stale() == set()
    check_same_run(untrained, small_disk, swept["train/paft-q0.75/0"])


def test_two_sweeps_at_once_build_every_stage_once(untrained: Scratch, swept: Swept):
    sweeps = [untrained.start("thaw", "sweep") for _ in range(2)]
    try:
        assert [sweep.wait(400) for sweep in sweeps] == [0, 0]
    finally:
        for sweep in sweeps:
            sweep.kill()
    log = untrained.folder.with_suffix(".log").read_text()
    assert built_in(log) == RERUN
    assert log.count("| built in ") == len(RERUN)
    assert untrained.stale() == set()
    check_same_run(untrained, untrained.folder / ARM, swept["train/paft-q0.75/0"])


def test_what_a_killed_arm_left_is_refused_by_other_settings(untrained: Scratch):
    sweep = untrained.start("thaw", "sweep")
    try:
        until(lambda: saved(untrained))
    finally:
        sweep.kill()
        sweep.wait()
    step = saved(untrained)
    untrained.change("arms=[paft-q0.75]", "train.learning_rate=0.02")
    log = untrained.run("thaw", "sweep", status=2)
    assert f"error: stage {TRAIN}: {ARM}/state/step-{step} belongs to another run" in log
    assert "settings.train.learning_rate: 0.01 there, 0.02 now" in log
    assert json.loads((untrained.folder / ARM / f"state/step-{step}/state.json").read_text())
