"""What work keeps in a file about itself, and how long a sweep still takes by it."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from components import job
from components.job import Job, Stage, read_job, report, running_stage, working_on
from components.outlook import span, time_left, whole


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work of no time is noted, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "DELAY", 0.0)
    monkeypatch.setattr(job, "WRITE_SECONDS", 0.0)


FILE = Path("build/jobs/train-grpo-0.json")


def tell(done: int) -> None:
    report("train", done, 4, left=10.0, said="P 0.1", figures={"p": 0.1})


def found(file: Path = FILE) -> Job:
    read = read_job(file)
    assert read is not None
    return read


def test_work_keeps_a_file_while_it_lasts():
    with working_on("train grpo seed 0", Path("build/train/grpo/0")):
        assert not FILE.exists()  # it may be refused yet
        tell(1)
        assert (found().state, found().done, found().left, found().figures) == ("running", 1, 10.0, {"p": 0.1})
        assert found().folder == str(Path("build/train/grpo/0").resolve())
    assert not FILE.exists()


@pytest.mark.parametrize(
    ("error", "state"), [(ValueError("no room\nat all"), "failed"), (KeyboardInterrupt(), "interrupted")]
)
def test_a_file_says_why_work_ended_before_its_time_until_it_is_done(error: BaseException, state: str):
    with suppress(ValueError, KeyboardInterrupt), working_on("train", Path("build/train/grpo/0")):
        tell(3)
        raise error
    assert (found().state, found().done) == (state, 3)
    assert found().ended == ("no room" if state == "failed" else "interrupted")
    with working_on("train", Path("build/train/grpo/0")):
        pass
    assert not FILE.exists()


def test_work_that_was_killed_is_told_from_work_that_goes_on():
    with working_on("train", Path("build/train/grpo/0")):
        tell(1)
        content = json.loads(FILE.read_text())
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        for changed in ({"pid": gone.pid}, {"created": content["created"] - 100}):  # the id was given again
            FILE.write_text(json.dumps(content | changed))
            assert found().state == "killed"


def test_whoever_comes_second_leaves_the_file_of_the_first_alone():
    with working_on("first", Path("build/train/grpo/0")):
        tell(1)
        content = json.loads(FILE.read_text())
        other = psutil.Process().parent()
        assert other is not None
        first = content | {"pid": other.pid, "created": other.create_time()}
        FILE.write_text(json.dumps(first))
        with working_on("second", Path("build/train/grpo/0")):
            tell(2)
        assert json.loads(FILE.read_text()) == first


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"stages": {"a": 1}}', '{"stages": {}, "what": "x"}'])
def test_a_file_that_says_nothing_is_none(content: str):
    Path("x.json").write_text(content)
    assert read_job(Path("x.json")) is None


def test_a_sweep_notes_its_stages():
    stages = ["train@a-0", "train@b-0", "evaluate@a-0"]
    file = Path("build/jobs/flow-sweep.json")

    def states() -> list[str]:
        return [stage.state for stage in found(file).stages.values()]

    with suppress(KeyboardInterrupt), working_on("sweep", Path(), name="flow-sweep", stages=stages):
        with running_stage("train@a-0") as stage:
            assert states() == ["running", "waiting", "waiting"]
            stage.state = "built"
        with suppress(ValueError), running_stage("train@b-0"):
            raise ValueError("out of memory")
        assert states() == ["built", "failed", "waiting"]
        assert found(file).stages["train@b-0"].why == "out of memory"
        assert whole(found(file)) == "1 of 2 arms trained, 1 failed"  # nothing is known of evaluations
        with running_stage("evaluate@a-0"):
            shutil.copy(file, "killed.json")
            raise KeyboardInterrupt
    assert found(file).state == "interrupted"
    killed = Path("killed.json").read_text()
    file.write_text(killed.replace(f'"pid": {os.getpid()}', '"pid": 999999999'))
    assert states() == ["built", "failed", "interrupted"]  # of a sweep that was killed
    assert whole(found(file)) == "1 of 2 arms trained, 1 failed"


def sweep(parallel: int, **stages: Stage) -> Job:
    named = {name.replace("_", "@"): stage for name, stage in stages.items()}
    return Job("sweep", ".", "", "host", 1, 0.0, 0.0, stages=named, parallel=parallel)


def part(left: float | None) -> Job:
    return Job("train", ".", "", "host", 2, 0.0, 0.0, left=left)


def test_a_sweep_takes_as_long_as_its_stages_took_on_the_slots_that_it_has():
    """One train stage took 100 s, one has 30 s left, two wait; an evaluation took 10 s, three wait."""
    built, waits = Stage("built", 0.0, 100.0), Stage()
    stages = {"train_a": built, "train_b": Stage("running", 50.0), "train_c": waits, "train_d": waits}
    stages |= {"evaluate_a": Stage("built", 0.0, 10.0), "evaluate_b": waits, "evaluate_c": waits, "evaluate_d": waits}
    assert time_left(sweep(1, **stages), {"train@b": part(30.0)}, 120.0) == (30 + 2 * 100 + 3 * 10, True)
    assert time_left(sweep(2, **stages), {"train@b": part(30.0)}, 120.0) == (130, True)
    # of one that does not say what is left, the rest of what others took
    assert time_left(sweep(1, train_a=built, train_b=Stage("running", 50.0)), {}, 120.0) == (30, True)


def test_of_stages_that_nothing_is_known_of_a_sweep_says_so():
    first = {"train_a": Stage("running", 0.0), "train_b": Stage(), "evaluate_a": Stage()}
    assert time_left(sweep(1, **first), {"train@a": part(80.0)}, 20.0) == (80 + 100, False)
    assert time_left(sweep(1, **first), {}, 20.0) == (0, False)
    assert time_left(sweep(2, train_a=Stage("up to date", 0.0, 1.0)), {}, 20.0) == (0, True)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0:00"), (59.6, "1:00"), (725, "12:05"), (11400, "3:10:00"), (2 * 86400 + 5, "2 days 0:00:05")],
)
def test_times_are_written_as_people_read_them(seconds: float, told: str):
    assert span(seconds) == told
