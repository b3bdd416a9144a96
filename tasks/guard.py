"""Runs a shell command and leaves nothing of it behind: python guard.py COMMAND.

It stands between a flow and what the flow starts. When the command ends, or when the guard's standard input is closed
(as the kernel does when the flow dies, however it dies), every process that the command has started is ended: with
SIGTERM, and if that does not help with SIGKILL. That holds for processes that left its group, too, as torchrun's ranks
do: on Linux the guard adopts orphans. Its exit status is the command's, 128 + N for one that signal N has ended.

A program of its own, of the standard library alone, so that it starts at once.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

GRACE = 10.0  # seconds between SIGTERM and SIGKILL
SET_DEATH_SIGNAL, SET_SUBREAPER = 1, 36  # of Linux's prctl


def main(command: str) -> int:
    """Run a command to its end, or until nobody is left to run it for; returns its exit status."""
    prctl = _prctl()
    prctl(SET_SUBREAPER, 1)
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    process = subprocess.Popen(  # kept, since it would take its child's status with it when it goes
        command, shell=True, stdin=subprocess.DEVNULL, close_fds=False,
        preexec_fn=lambda: prctl(SET_DEATH_SIGNAL, signal.SIGKILL),  # should the guard itself be killed
    )  # fmt: skip
    child = process.pid
    statuses: dict[int, int] = {}
    while _reap(statuses) and child not in statuses:
        ready, _, _ = select.select([sys.stdin, wake], [], [])
        if sys.stdin in ready or signal.SIGTERM in os.read(wake, 4096):
            break
    _end_rest(child, statuses)
    return statuses[child] if statuses[child] >= 0 else 128 - statuses[child]


def _end_rest(child: int, statuses: dict[int, int]) -> None:
    """End what is left of the command, until nothing is."""
    deadline = time.monotonic() + GRACE
    told: set[int] = set()
    while _reap(statuses):
        hard = time.monotonic() > deadline
        for pid in _descendants(child) - (set() if hard else told):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if hard else signal.SIGTERM)
            told.add(pid)
        time.sleep(0.02)


def _reap(statuses: dict[int, int]) -> bool:
    """Take the status of every child that has ended; whether any still runs."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
        statuses[pid] = os.waitstatus_to_exitcode(status)


def _descendants(child: int) -> set[int]:
    """All that has come of this process; without /proc, the command itself."""
    if not Path("/proc/self/stat").exists():
        return {child}
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            _, parent, *_ = path.read_text(errors="replace").rpartition(")")[2].split()
            children.setdefault(int(parent), []).append(int(path.parent.name))
    found, todo = set(), [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        found.update(below)
        todo += below
    return found


def _prctl():
    """Linux's prctl(option, value); nothing on other systems."""
    if sys.platform != "linux":
        return lambda *_: 0
    library = ctypes.CDLL(None)
    return lambda option, value: library.prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
