"""A real process that ends, and is started anew."""

import re
import time
from collections.abc import Callable

import psutil
import pytest

from components.errors import UserError
from tasks import kept
from tasks.kept import Kept
from tasks.process import start_guarded


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(kept, "LONGEST_PAUSE", 0.05)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_was_killed_is_started_anew_and_leaves_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    sleeper = Kept("the sleeper", lambda: start_guarded("sleep 600 & sleep 600"))
    try:
        first = psutil.Process(sleeper._process.pid)
        until(lambda: len(first.children(recursive=True)) >= 2)
        below = first.children(recursive=True)
        assert not sleeper.look()
        first.kill()
        until(sleeper.look)
        assert psutil.wait_procs(below, 30)[1] == []
        assert psutil.pid_exists(sleeper._process.pid)
        assert sleeper._process.pid != first.pid
    finally:
        last = sleeper._process.pid
        sleeper.end()
    assert not psutil.pid_exists(last)
    assert "the sleeper has ended (-9); it is started anew in 0.02 s" in capfd.readouterr().err


def test_what_ends_at_once_again_and_again_is_given_up(capfd: pytest.CaptureFixture[str]) -> None:
    failing = Kept("the worker of cpu", lambda: start_guarded("exit 3"))
    with pytest.raises(
        UserError, match=r"^the worker of cpu has ended 9 times in a row; its last lines above say why\.$"
    ):
        until(lambda: failing.look() and False)
    pauses = re.findall(r"anew in (\S+) s", capfd.readouterr().err)
    assert pauses == ["0.02", "0.04", *["0.05"] * 6]


def test_after_a_while_that_went_well_earlier_ends_count_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "WELL", 0.0)
    monkeypatch.setattr(kept, "MOST", 1)
    process = Kept("it", lambda: start_guarded("sleep 600"))
    try:
        for _ in range(3):
            process.look()
            psutil.Process(process._process.pid).kill()
            until(process.look)
    finally:
        process.end()
