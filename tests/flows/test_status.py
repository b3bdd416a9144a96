"""`thaw status` and `thaw logs`: what goes on, by the files that work keeps; nothing is made, and nobody is needed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from components import job
from components.job import JOBS, report, running_stage, working_on
from tests.answers import dead_port
from tests.conftest import PROJECT
from tests.flows.conftest import Thaw
from tests.flows.scratch import until
from tests.flows.test_cli import files

STAGES = ["prepare", "train@grpo-0", "train@garl-q1-0", "evaluate@grpo-0", "report"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of which nothing is known yet."""
    for name in ("DELAY", "WRITE_SECONDS"):
        monkeypatch.setattr(job, name, 0.0)
    monkeypatch.setattr(sys, "argv", ["/bin/thaw", "train", "--out", "runs/mine"])
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    folder = tmp_path / "project"
    for made in (".dvc", "runs/mine", "build/train/grpo/0"):
        (folder / made).mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


@contextmanager
def sweeping(folder: Path) -> Iterator[None]:
    """A sweep, as this process would run it: one stage is built, one has failed, one is on its way."""
    with working_on("sweep (wise-owl)", folder, build=folder, name="flow-sweep", stages=STAGES, parallel=2):
        with running_stage("prepare") as stage:
            stage.state = "built"
        with suppress(ValueError), running_stage("train@garl-q1-0"):
            raise ValueError("it ended with status 1; it last said:\nCUDA out of memory")
        with (
            running_stage("train@grpo-0"),
            working_on("train grpo seed 0", folder / "build/train/grpo/0", build=folder),
        ):
            report("train grpo seed 0", 50, 200, left=75.0, said="P 0.3, maj@16 75%", figures={"p": 0.3})
            yield


def write_log(folder: Path, name: str, text: str, *, age: float = 0.0) -> Path:
    path = folder / JOBS / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_where_nothing_runs_it_says_so_and_makes_nothing(project: Path, thaw: Thaw):
    before = files(project.parent)
    said = thaw(project, "status")
    assert (said.status, said.out) == (0, "nothing runs\n")
    assert files(project.parent) == before
    refused = thaw(project, "status", "runs/mine")
    assert refused.status == 2
    assert refused.err.startswith("error: runs/mine holds no run, and nobody is at work on it;")


def test_a_sweep_is_shown_with_its_stages_what_is_left_and_what_failed(project: Path, thaw: Thaw):
    log = write_log(project, "train-garl-q1-0", "CUDA out of memory\n")
    with sweeping(project):
        said = thaw(project, "status")
        told = json.loads(thaw(project, "status", "--json").out)
    assert said.out.splitlines() == [
        "sweep (wise-owl): 0 of 2 arms trained, 1 running, 1 failed; at least 1:15 left",
        f"  {job.socket.gethostname()}, process {os.getpid()}, for 0:00, in {project}",
        f"  running     train@grpo-0: 50 of 200, 1:15 left, P 0.3, maj@16 75% (process {os.getpid()})",
        "  waiting     evaluate@grpo-0, report",
        "  failed      train@garl-q1-0",
        "  built       prepare",
        f"failed last, 0:00 ago: train@garl-q1-0: it ended with status 1; its log: {log}",
    ]
    [sweep] = told["work"]
    assert sweep["stages"]["train@grpo-0"]["figures"] == {"p": 0.3}
    assert sweep["stages"]["train@grpo-0"]["left"] == 75.0
    assert told["last_failure"]["log"] == str(log)
    assert told["prefect"] is None
    assert json.loads(thaw(project, "status", "--json").out)["work"] == []


def test_an_experiment_and_what_was_interrupted_are_found_from_the_project(project: Path, thaw: Thaw):
    (project / "experiments/five").mkdir(parents=True)
    with suppress(KeyboardInterrupt), working_on("train grpo seed 3", project / "runs/mine"):
        report("train grpo seed 3", 7, 9, left=1.0, said="P 0.1", figures={})
        raise KeyboardInterrupt
    with sweeping(project / "experiments/five"):
        lines = thaw(project, "status").out.splitlines()
    assert lines[1].endswith(f"in {project}/experiments/five")
    [left] = [line for line in lines if line.startswith("train grpo seed 3: interrupted 0:0")]
    assert left.endswith(" ago at 7 of 9, P 0.1; `thaw train --out runs/mine` goes on")
    said = thaw(project, "status", "runs/mine").out
    assert said.startswith("nobody is known to be at work on runs/mine\ntrain grpo seed 3: interrupted")


def test_where_a_run_stands_is_told_from_its_folder_alone(project: Path, thaw: Thaw):
    state = project / "runs/mine/state/step-50"
    state.mkdir(parents=True)
    stands = {"step": 50, "best_step": 50, "best_score": 0.75, "identity": {"settings": {"train": {"steps": 200}}}}
    (state / "state.json").write_text(json.dumps(stands))
    (state.parent / "step-100.partial").mkdir()
    said = thaw(project, "status", "runs/mine").out
    assert said.startswith("runs/mine: stopped at step 50 of 200; best by validation step 50, 75.0%\n")
    record = {"steps": 200, "best_step": 150, "validation": 1.0}
    (project / "runs/mine/train.json").write_text(json.dumps(record))
    said = thaw(project, "status", "runs/mine").out
    assert said.startswith("runs/mine: trained at step 200 of 200; best by validation step 150, 100.0%\n")


def test_what_prefect_is_not_there_to_say_is_a_sentence_and_the_rest_is_told(project: Path, thaw: Thaw):
    url = f"http://127.0.0.1:{dead_port()}/api"
    with working_on("serve", project, name="serve", said=url), sweeping(project):
        said = thaw(project, "status").out
    assert "train@grpo-0: 50 of 200" in said
    assert f"Prefect's flow runs are not known: no Prefect server answers at {url};" in said


def test_logs_are_found_by_arm_stage_folder_sweep_and_flow_run(project: Path, thaw: Thaw):
    write_log(project, "flow-sweep", "sweep (wise-owl) begins\n", age=5)
    write_log(project, "train-garl-q1-0", "trained\n", age=4)
    write_log(project, "train-garl-q1to0-0", "other\n", age=3)
    write_log(project, "evaluate-garl-q1-0", "evaluated\n", age=2)
    write_log(project / "experiments/five", "train-grpo-0", "".join(f"{number}\n" for number in range(30)), age=1)
    (project / "build/train/garl-q1/0").mkdir(parents=True)
    for name, told in {
        "garl-q1": "evaluated\n",
        "train@garl-q1-0": "trained\n",
        "build/train/garl-q1/0": "trained\n",
        "garl-q1to0": "other\n",
        "sweep": "sweep (wise-owl) begins\n",
        "wise-owl": "sweep (wise-owl) begins\n",
    }.items():
        assert thaw(project, "logs", name).out == told, name
    said = thaw(project, "logs")  # the newest
    assert said.out == "".join(f"{number}\n" for number in range(10, 30))
    assert said.err.startswith(f"{project}/experiments/five/build/jobs/train-grpo-0.log; others: evaluate-garl-q1-0, ")
    assert thaw(project, "logs", "--lines", "1").out == "29\n"
    refused = thaw(project, "logs", "paft-q1")
    assert refused.status == 2
    assert "there is no log of paft-q1; there are evaluate-garl-q1-0, flow-sweep, " in refused.err


FOLLOWED = """
import sys
from flows.cli import main
sys.argv = ["thaw", "logs", "grpo", "--follow"]
main()
"""
STUBBORN = """
import sys, time
from flows.ending import heed_signals, keeps
from tasks.process import start_guarded
@keeps(lambda: ("all of it is kept", "goes on"))
def work():
    child = start_guarded("exec sleep 600")
    try:
        print(child.pid, flush=True)
        time.sleep(600)
    finally:
        print("ends", flush=True)
        time.sleep(600)
sys.argv = ["/bin/thaw", "sweep", "--name", "a b"]
heed_signals()
work()
"""


def start(code: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env=os.environ | {"PYTHONPATH": str(PROJECT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def test_a_log_is_followed_until_ctrl_c(project: Path):
    log = write_log(project, "train-grpo-0", "one\n")
    process = start(FOLLOWED, project)
    assert process.stdout.readline() == "one\n"
    with log.open("a") as file:
        print("two", file=file)
    assert process.stdout.readline() == "two\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert "Traceback" not in process.communicate()[1]


def test_a_second_ctrl_c_ends_at_once_with_all_that_was_started(project: Path):
    process = start(STUBBORN, project)
    child = int(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "ends\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == -signal.SIGINT
    until(lambda: not Path(f"/proc/{child}").exists(), 30)
