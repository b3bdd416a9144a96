"""One stage as a Prefect task runs it: its process, its result, and nothing of it left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Thread

import pytest
from prefect.logging import disable_run_logger

from components.config import SweepSettings
from components.errors import UserError
from tasks.build import Build
from tasks.process import FlowEnded, Slots
from tasks.stage import StageFailed, StageLost, run_stage
from tests.flows.scratch import lives, until
from tests.tasks.conftest import Toy

STAGE = "train@grpo-0"
LIMITS = SweepSettings(parallel=1, retries=0, timeout_minutes=5)
# A process of the stage's group that would outlive its command by far and keeps its output open.
LEAVES = "mkdir -p $2\nsleep 600 &\necho $! > child\n"


@pytest.fixture(autouse=True)
def outside_of_a_flow() -> Iterator[None]:
    with disable_run_logger():
        yield


def run(folder: Path, name: str = STAGE, slots: Slots | None = None) -> str:
    """The task's own code, with what it needs built before."""
    with slots or Slots(1) as slots:
        for needed in ("prepare", "base"):
            if name.startswith("train@"):
                run_stage.fn(folder, needed, slots, LIMITS)
        return run_stage.fn(folder, name, slots, LIMITS)


def child(folder: Path) -> int:
    """The process that a stage's command has started."""
    return int(until(lambda: (folder / "child").is_file() and (folder / "child").read_text().strip(), 30))


def check_gone(pid: int) -> None:
    """Of a process that was sent its end; it may need a moment."""
    until(lambda: not lives(pid), 10)


def test_a_stage_is_built_once(toy: Toy):
    folder = toy()
    assert run(folder) == "built"
    assert (folder / "build/train/grpo/0/final").read_text() == "weights of grpo\n"
    assert run(folder) == "up to date"


def test_a_failed_command_says_its_last_lines_and_is_not_recorded(toy: Toy):
    script = "mkdir -p $2; echo half > $2/final\nseq 1 50\necho CUDA out of memory >&2\nexit 3"
    folder = toy(train=script)
    with pytest.raises(StageFailed) as failed:
        run(folder)
    first, *last = str(failed.value).splitlines()
    assert first == f"stage {STAGE} ended with status 3; it last said:"
    assert last == [*map(str, range(32, 51)), "CUDA out of memory"]
    assert Build(folder).begin(STAGE) is not None


def test_a_refused_setting_is_the_commands_own_sentence(toy: Toy):
    folder = toy(train="echo reading\necho 'error: q = 2 lies outside [0, 1].' >&2\nexit 2")
    with pytest.raises(UserError, match=r"^stage train@grpo-0: q = 2 lies outside \[0, 1\]\.$"):
        run(folder)


def test_output_that_is_no_text_fails_nothing(toy: Toy):
    folder = toy(train="mkdir -p $2\nprintf 'caf\\351 \\377\\n'\necho done > $2/final")
    assert run(folder) == "built"


def test_a_stage_whose_dependency_it_changes_itself_is_not_recorded(toy: Toy):
    folder = toy(train="mkdir -p $2\necho more >> build/base\necho done > $2/final")
    with pytest.raises(UserError, match=r"build/base changed while .*train@grpo-0 ran"):
        run(folder)
    assert Build(folder).begin(STAGE) is not None


@pytest.mark.parametrize(
    ("end", "outcome"), [("exit 1", StageFailed), ("exit 2", UserError), ("kill -9 $$", StageLost)]
)
def test_a_failed_command_leaves_no_process_and_holds_nobody_up(toy: Toy, end: str, outcome: type[Exception]):
    folder = toy(train=LEAVES + end)
    started = time.monotonic()
    with pytest.raises(outcome):
        run(folder)
    assert time.monotonic() - started < 300
    check_gone(child(folder))


def test_a_command_that_ends_well_leaves_no_process_either(toy: Toy):
    folder = toy(train=LEAVES + "echo done > $2/final")
    assert run(folder) == "built"
    check_gone(child(folder))


def test_leaving_the_slots_ends_what_runs_and_begins_nothing_more(toy: Toy):
    folder = toy(train=LEAVES + "wait")
    outcomes = {}

    def outcome(name: str, slots: Slots) -> None:
        try:
            outcomes[name] = run_stage.fn(folder, name, slots, LIMITS)
        except (StageFailed, FlowEnded) as failed:
            outcomes[name] = str(failed)

    with Slots(1) as slots:
        for needed in ("prepare", "base"):
            run_stage.fn(folder, needed, slots, LIMITS)
        running = Thread(target=outcome, args=(STAGE, slots))
        running.start()
        process = child(folder)
        waiting = Thread(target=outcome, args=("probe", slots))
        waiting.start()
        assert lives(process)
    running.join(30)
    waiting.join(30)
    check_gone(process)
    assert outcomes == {STAGE: "the flow has ended", "probe": "the flow has ended"}
    assert not (folder / "build/probe").exists()


def test_no_more_stages_run_at_a_time_than_there_are_slots(toy: Toy):
    script = "mkdir -p $2\nmkdir running || exit 1\nsleep 0.3\nrmdir running\necho done > $2/final"
    folder = toy("seeds=[0, 1]", train=script)
    arms = [name for name in Build(folder).stages() if name.startswith("train@")]
    with Slots(1) as slots, ThreadPoolExecutor(len(arms)) as pool:
        for needed in ("prepare", "base"):
            run_stage.fn(folder, needed, slots, LIMITS)
        assert list(pool.map(lambda name: run_stage.fn(folder, name, slots, LIMITS), arms)) == ["built"] * 4


def test_two_flows_that_want_the_same_stage_run_it_once(toy: Toy):
    folder = toy(train="mkdir -p $2\necho started >> started\nsleep 0.5\necho done > $2/final")
    with Slots(1) as slots:
        for needed in ("prepare", "base"):
            run_stage.fn(folder, needed, slots, LIMITS)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: run_stage.fn(folder, STAGE, Slots(1), LIMITS), range(2)))
    assert sorted(results) == ["built", "up to date"]
    assert (folder / "started").read_text() == "started\n"


FLOW = f"""
from pathlib import Path
from prefect.logging import disable_run_logger
from components.config import SweepSettings
from tasks.stage import Slots, run_stage
limits = SweepSettings(parallel=1, retries=0, timeout_minutes=5)
with disable_run_logger(), Slots(1) as slots:
    for name in ("prepare", "base", "{STAGE}"):
        run_stage.fn(Path(), name, slots, limits)
"""
ONCE = "mkdir -p $2\nif [ -e child ]; then echo done > $2/final; exit; fi\n"


@pytest.mark.parametrize("leaves", [LEAVES, LEAVES.replace("sleep", "setsid sleep")], ids=["", "in another session"])
def test_what_a_flow_runs_ends_when_the_flow_is_killed(toy: Toy, leaves: str):
    folder = toy(train=ONCE + leaves + "wait")
    flow = subprocess.Popen([sys.executable, "-c", FLOW], cwd=folder)
    try:
        process = child(folder)
        assert lives(process)
    finally:
        flow.send_signal(signal.SIGKILL)
        flow.wait()
    check_gone(process)
    assert run(folder) == "built"


def test_what_is_left_when_the_guard_is_killed_too_is_ended_before_its_stage_runs_again(toy: Toy):
    folder = toy(train=ONCE + LEAVES + "wait")
    flow = subprocess.Popen([sys.executable, "-c", FLOW], cwd=folder)
    try:
        process = child(folder)
        [note] = (folder / ".dvc/tmp").glob(f"thaw-stage-*{STAGE}")
        os.kill(int(note.read_text()), signal.SIGSTOP)
        os.kill(int(note.read_text()), signal.SIGKILL)
    finally:
        flow.send_signal(signal.SIGKILL)
        flow.wait()
    assert lives(process), "nothing is left to be ended"
    assert run(folder) == "built"
    check_gone(process)


@pytest.mark.parametrize("end", ["kill -9 $$", "exit 137", "exit 75"])
def test_what_may_succeed_when_it_is_tried_again_is_told_from_what_would_fail_again(toy: Toy, end: str):
    folder = toy(train="mkdir -p $2\n" + end)
    with pytest.raises(StageLost):
        run(folder)


def test_a_stage_that_says_nothing_any_more_is_ended(toy: Toy):
    folder = toy(train="for i in 1 2 3 4; do echo working; sleep 0.4; done\n" + LEAVES + "wait")
    quick = LIMITS.model_copy(update={"timeout_minutes": 1 / 60})
    with Slots(1) as slots:
        for needed in ("prepare", "base"):
            run_stage.fn(folder, needed, slots, LIMITS)
        with pytest.raises(StageLost, match=r"said nothing for 0\.01\d+ minutes and was ended; it last said:\nwork"):
            run_stage.fn(folder, STAGE, slots, quick)
    check_gone(child(folder))


def test_every_slot_has_gpus_of_its_own():
    def dealt(number: int, gpus: list[str]) -> list[dict[str, str]]:
        slots = Slots(number, gpus)
        with ExitStack() as stack:
            return [stack.enter_context(slots.taken()) for _ in range(min(number, len(gpus)) or number)]

    assert dealt(2, []) == [{}, {}]
    assert dealt(3, ["0", "1"]) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert dealt(2, ["4", "5", "6", "7"]) == [{"CUDA_VISIBLE_DEVICES": "4,6"}, {"CUDA_VISIBLE_DEVICES": "5,7"}]


def test_a_stage_sees_the_gpus_of_its_slot(toy: Toy):
    folder = toy(train="mkdir -p $2\necho $CUDA_VISIBLE_DEVICES > $2/final")
    assert run(folder, slots=Slots(1, ["3"])) == "built"
    assert (folder / "build/train/grpo/0/final").read_text() == "3\n"
