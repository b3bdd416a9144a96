"""The flows on a pipeline of quick stages: one arm alone, an arm that fails, a sweep that is interrupted."""

import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from flows.logs import find_logs
from tasks.status import status
from tests.flows.scratch import Scratch, built_in, lives, until
from tests.tasks.toy import toy_project

pytestmark = pytest.mark.slow  # Prefect takes up to ten seconds to start

FAILS = """
mkdir -p $2
if [ $1 = grpo ]; then sleep 600 & echo $! > child; echo "CUDA out of memory"; exit 1; fi
echo weights of $1 > $2/final
"""
WAITS = """
mkdir -p $2
echo waiting
sleep 600 &
echo $! > child
wait
"""
KEPT = "interrupted: what is built is kept, and so are the checkpoints of training; `thaw sweep` goes on from there.\n"


Toy = Callable[[str], Scratch]


@pytest.fixture
def toy(tmp_path: Path, fresh: Scratch) -> Toy:
    """Makes such a project around a shell script for its train stages."""
    return lambda train: Scratch(toy_project(tmp_path / "toy", train=train), fresh.prefect, program=fresh.folder)


def test_post_train_takes_one_arm_from_data_to_figures_and_no_other(toy: Toy):
    project = toy("mkdir -p $2; echo weights of $1 > $2/final")
    log = project.run("python", "-c", "from flows.sweep import post_train; post_train('paft-q0.75', 0)")
    assert "post_train" in log
    assert {path.name for path in (project.folder / "build/train").iterdir()} == {"paft-q0.75"}
    assert (project.folder / "build/evaluate/paft-q0.75/0").read_text() == "weights of paft-q0.75\n"
    assert project.stale() == {"probe", "train@grpo-0", "evaluate@grpo-0", "report"}


def test_an_arm_that_fails_stops_no_other_and_the_sweep_ends_with_what_it_said(toy: Toy):
    project = toy(FAILS)
    log = project.run("thaw", "sweep", status=1)
    assert built_in(log) == {"prepare", "base", "probe", "train@paft-q0.75-0", "evaluate@paft-q0.75-0"}
    assert "\nerror: stage train@grpo-0 ended with status 1; it last said:\nCUDA out of memory\n" in log
    assert "Traceback" not in log
    assert project.stale() == {"train@grpo-0", "evaluate@grpo-0", "report"}
    failure = told(project.folder)["last_failure"]
    assert (failure["what"], failure["why"]) == ("train@grpo-0", "stage train@grpo-0 ended with status 1")
    assert Path(failure["log"]).read_text().endswith("\nCUDA out of memory\n")
    pid = int((project.folder / "child").read_text())
    until(lambda: not lives(pid), 10)


@pytest.mark.parametrize(("ending", "ended"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_sweep_that_is_interrupted_ends_soon_and_leaves_nothing_running(toy: Toy, ending: signal.Signals, ended: int):
    project = toy(WAITS)
    child = project.folder / "child"
    sweep = project.start("thaw", "sweep")
    try:
        until(lambda: child.is_file() and child.read_text().strip())
        pid = int(child.read_text())
        assert lives(pid)
        check_told_meanwhile(project.folder, sweep.pid)
        time.sleep(1)  # a signal at the very moment in which Python goes to sleep is seen when it next wakes up
        os.kill(sweep.pid, ending)
        assert sweep.wait(120) == ended
        [left] = told(project.folder)["work"]
        assert (left["state"], left["command"]) == ("interrupted", "thaw sweep")
        assert "interrupted" in {left["stages"][f"train@{arm}-0"]["state"] for arm in ("grpo", "paft-q0.75")}
        said = project.folder.with_suffix(".log").read_text()
        assert (KEPT in said) == (ending == signal.SIGINT)  # whoever asks for the other two reads nothing
        until(lambda: not lives(pid), 10)
        until(lambda: not members(sweep.pid), 10)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(sweep.pid, signal.SIGKILL)


def check_told_meanwhile(folder: Path, pid: int) -> None:
    """`thaw status` and `thaw logs` know of the sweep what it is at."""
    [sweep] = told(folder)["work"]
    assert (sweep["state"], sweep["pid"], sweep["folder"]) == ("running", pid, str(folder))
    assert sweep["what"].startswith("sweep (")
    states = {name: stage["state"] for name, stage in sweep["stages"].items()}
    assert states["base"] == "built"
    assert "running" in (states["train@grpo-0"], states["train@paft-q0.75-0"])
    assert states["evaluate@grpo-0"] == states["report"] == "waiting"
    log = find_logs(folder, "train")[-1]  # of the arm that began first
    until(lambda: re.search(r" sh train\.sh \S+ build/train/\S+\nwaiting\n$", log.read_text()), 10)
    assert "built in" in find_logs(folder, "sweep")[0].read_text()


def told(folder: Path) -> dict[str, Any]:
    return status(folder, folder)


def members(group: int) -> list[int]:
    """The living processes of a group; Prefect's temporary server is in that of its flow."""
    everyone = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    found = []
    for pid in everyone:
        with suppress(ProcessLookupError):
            if os.getpgid(pid) == group and lives(pid):
                found.append(pid)
    return found
