"""What is shown of work that goes on: one line that changes on a terminal, plain lines elsewhere."""

import sys
import time

import pytest

from components import progress as shown
from components.progress import Progress, progress, say_last
from tests.terminal import Terminal


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is shown, and nothing of the environment decides."""
    for name in ("SHOWN_AFTER", "TERMINAL_SECONDS", "LINE_SECONDS"):
        monkeypatch.setattr(shown, name, 0)
    for name in ("CI", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """One in the place of standard error. A fixture could not put it there, for pytest takes that back for the test."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal.file)
    return terminal


def work() -> None:
    """The second half of four steps, each of which validates."""
    for step in (bar := Progress(range(2, 4), "train", done=2)):
        for _ in progress(range(2), "validate"):
            time.sleep(0.01)
        bar.show(f"P 0.{step}", {"p": step})


def test_a_terminal_has_one_line_that_is_written_over(monkeypatch: pytest.MonkeyPatch):
    terminal = at_a_terminal(monkeypatch)
    work()
    said = terminal.close()
    assert "\rtrain:  50%|" in said
    assert "| 3/4, 00:00 left, P 0.2" in said
    assert "| 4/4, 00:00 left, P 0.3" in said
    # Validation has a line below, which is cleared and left again; only the end of all begins a new one.
    assert said.count("\n") - said.count("\x1b[A") == 1
    assert said.endswith("\n")


def test_elsewhere_are_plain_lines(capsys: pytest.CaptureFixture[str]):
    work()
    said = capsys.readouterr().err
    assert "train: 50%, 2 of 4, ? left\n" in said
    assert "train: 75%, 3 of 4, 00:00 left, P 0.2\n" in said
    assert "validate: 50%, 1 of 2, 00:00 left\n" in said
    assert said.replace("\n", "").isprintable()


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("TERM", "dumb")])
def test_so_are_they_on_a_terminal_that_nobody_looks_at(monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    terminal = at_a_terminal(monkeypatch)
    monkeypatch.setenv(name, value)
    work()
    said = terminal.close()
    assert "train: 75%, 3 of 4, 00:00 left, P 0.2" in said
    assert said.replace("\r\n", "").isprintable()


def test_how_long_is_not_told_of_what_has_no_known_end(capsys: pytest.CaptureFixture[str]):
    assert list(progress((number for number in range(3)), "reading")) == [0, 1, 2]
    assert "reading: 2 in 00:00\n" in capsys.readouterr().err


def test_the_last_word_stands_below_the_line(monkeypatch: pytest.MonkeyPatch):
    terminal = at_a_terminal(monkeypatch)
    for _ in Progress(range(2), "train"):
        say_last("interrupted")
        break
    assert terminal.close().endswith("\r\ninterrupted\r\n")


def test_of_several_processes_the_first_alone_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RANK", "1")
    work()
    assert capsys.readouterr().err == ""
