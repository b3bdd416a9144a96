"""A real process that ends, and is started anew."""

import re
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from components.errors import UserError
from flows.serve import look_after
from tasks import kept
from tasks.kept import Kept
from tasks.lost_runs import NOTES
from tasks.process import start_guarded
from tests.answers import dead_port


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


def test_while_the_server_is_away_the_others_are_looked_after_and_a_lost_run_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "MOST", 2)
    lost = tmp_path / NOTES / str(uuid.uuid4())  # nobody holds it
    lost.parent.mkdir()
    lost.touch()
    server = Kept("Prefect's server", lambda: start_guarded("exit 3"), log=tmp_path / "server.log")
    url = f"http://127.0.0.1:{dead_port()}/api"
    with (
        temporary_settings({PREFECT_API_URL: url, PREFECT_HOME: tmp_path}),
        pytest.raises(UserError, match=rf"^Prefect's server has ended 3 times in a row; {tmp_path}/server.log"),
    ):
        look_after([server], 0.01)
    assert lost.exists()
