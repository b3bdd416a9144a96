"""A command whose guard is killed goes with it; nobody would end it, or hear how it ended."""

import subprocess

import psutil
import pytest

from tasks import process
from tasks.process import Watch, start_guarded
from tests.flows.scratch import lives, until


def test_what_lost_its_guard_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LOOK_SECONDS", 0.05)
    guarded = start_guarded("sleep 600 & sleep 600; true", stdout=subprocess.PIPE)
    watch = Watch(guarded, minutes=10)
    guard = psutil.Process(guarded.pid)
    until(lambda: len(guard.children(recursive=True)) == 3)
    below = [child.pid for child in guard.children(recursive=True)]
    guard.kill()
    assert guarded.stdout is not None
    assert guarded.stdout.read() == ""  # whoever writes to it is gone
    until(lambda: not any(lives(pid) for pid in below), 30)
    assert not watch.expired
    watch.stop()
