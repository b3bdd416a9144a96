"""One stage as a Prefect task runs it: its process, its result, and nothing of it left behind."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread

import pytest
from prefect.logging import disable_run_logger

from components.errors import UserError
from tasks.build import Build
from tasks.stage import Slots, StageFailed, run_stage
from tests.flows.scratch import lives, until
from tests.tasks.conftest import Toy

STAGE = "train@grpo-0"
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
                run_stage.fn(folder, needed, slots)
        return run_stage.fn(folder, name, slots)


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
    ("end", "outcome"), [("exit 1", StageFailed), ("exit 2", UserError), ("kill -9 $$", StageFailed)]
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
            outcomes[name] = run_stage.fn(folder, name, slots)
        except StageFailed as failed:
            outcomes[name] = str(failed)

    with Slots(1) as slots:
        for needed in ("prepare", "base"):
            run_stage.fn(folder, needed, slots)
        running = Thread(target=outcome, args=(STAGE, slots))
        running.start()
        process = child(folder)
        waiting = Thread(target=outcome, args=("probe", slots))
        waiting.start()
        assert lives(process)
    running.join(30)
    waiting.join(30)
    check_gone(process)
    assert outcomes[STAGE].startswith(f"stage {STAGE} ended with status -9")
    assert outcomes["probe"] == "the flow has ended"
    assert not (folder / "build/probe").exists()


def test_no_more_stages_run_at_a_time_than_there_are_slots(toy: Toy):
    script = "mkdir -p $2\nmkdir running || exit 1\nsleep 0.3\nrmdir running\necho done > $2/final"
    folder = toy("seeds=[0, 1]", train=script)
    arms = [name for name in Build(folder).stages() if name.startswith("train@")]
    with Slots(1) as slots, ThreadPoolExecutor(len(arms)) as pool:
        for needed in ("prepare", "base"):
            run_stage.fn(folder, needed, slots)
        assert list(pool.map(lambda name: run_stage.fn(folder, name, slots), arms)) == ["built"] * 4


def test_two_flows_that_want_the_same_stage_run_it_once(toy: Toy):
    folder = toy(train="mkdir -p $2\necho started >> started\nsleep 0.5\necho done > $2/final")
    with Slots(1) as slots:
        for needed in ("prepare", "base"):
            run_stage.fn(folder, needed, slots)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: run_stage.fn(folder, STAGE, Slots(1)), range(2)))
    assert sorted(results) == ["built", "up to date"]
    assert (folder / "started").read_text() == "started\n"


def test_what_a_killed_flow_has_left_running_is_ended_before_its_stage_runs_again(toy: Toy):
    folder = toy(train="mkdir -p $2\nif [ -e child ]; then echo done > $2/final; exit; fi\n" + LEAVES + "wait")
    flow = (
        "from pathlib import Path\n"
        "from prefect.logging import disable_run_logger\n"
        "from tasks.stage import Slots, run_stage\n"
        "with disable_run_logger(), Slots(1) as slots:\n"
        f"    for name in ('prepare', 'base', '{STAGE}'):\n"
        "        run_stage.fn(Path(), name, slots)\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", flow], cwd=folder)
    try:
        process = child(folder)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert lives(process), "nothing is left to be ended"
    assert run(folder) == "built"
    check_gone(process)
