"""One Prefect task a stage: run its command in a process group of its own, show what it says, record the result."""

import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock, Semaphore, Thread
from typing import Any, Self, TextIO

from filelock import FileLock
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from components.errors import UserError
from tasks.build import Build
from tasks.workspace import project_root

USER_ERROR = 2  # the exit status of a command whose input or settings are bad


class StageFailed(Exception):
    """A stage's command ended badly, for a reason other than its settings."""


class _TellInOneLine(logging.Filter):
    """Leaves out the traceback of what is no defect of the program."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], (UserError, StageFailed)):
            record.exc_info = None
        return True


for run_logger in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(run_logger).addFilter(_TellInOneLine())


class Slots:
    """How many stages run at the same time. On leaving, whatever still runs is ended and nothing is begun any more.

    with Slots(2) as slots:
        run_stage.submit(folder, "train@grpo-0", slots)
    """

    def __init__(self, number: int) -> None:
        self._free = Semaphore(number)
        self._lock = Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._left = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._left = True
            for process in self._running:
                _end_group(process)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for a free slot and hold it."""
        with self._free:
            self._refuse_when_left()
            yield

    @contextmanager
    def running(self, command: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
        """A shell command in a process group of its own; whatever happens, nothing of it is left running."""
        with self._lock:
            self._refuse_when_left()
            process = subprocess.Popen(command, shell=True, text=True, start_new_session=True, **options)
            self._running.add(process)
        try:
            yield process
        finally:
            _end_group(process)
            with self._lock:
                self._running.remove(process)

    def _refuse_when_left(self) -> None:
        if self._left:
            raise StageFailed("the flow has ended")


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def run_stage(folder: Path, name: str, slots: Slots) -> str:
    """Bring one DVC stage up to date; returns "built" or "up to date".

    Raises:
        UserError: the stage refused its input or settings.
        StageFailed: its command failed, or the flow has ended.
    """
    logger = get_run_logger()
    build = Build(folder)
    with slots.taken(), _held(folder, name) as note:
        stale = build.begin(name)
        if stale is None:
            logger.info("up to date")
            return "up to date"
        started = time.monotonic()
        _run(stale.command, folder, name, logger, slots, note)
        build.commit(stale)
        logger.info("built in %.0f s", time.monotonic() - started)
    return "built"


@contextmanager
def _held(folder: Path, name: str) -> Iterator[TextIO]:
    """Wait until no other flow runs this stage, and end what a flow that was killed has left of it.

    Yields a note for the id of the stage's process group, which locks it as long as anything of the group lives.
    """
    root = project_root(folder)
    where = f"{folder.resolve().relative_to(root)}-{name}".replace("/", "-")
    path = root / ".dvc" / "tmp" / f"thaw-stage-{where}"
    with FileLock(f"{path}.lock"), path.open("a+", encoding="utf-8") as note:
        try:
            fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note.seek(0)
            if group := note.read():
                os.killpg(int(group), signal.SIGKILL)
            fcntl.flock(note, fcntl.LOCK_EX)
        note.truncate(0)
        yield note


def _run(command: str, folder: Path, name: str, logger, slots: Slots, note: TextIO) -> None:
    """Run a shell command and log its lines as they come."""
    programs = str(Path(sys.executable).parent)  # where `thaw` lies, also when the environment is not activated
    options = {
        "cwd": folder,
        "env": os.environ | {"PATH": programs + os.pathsep + os.environ["PATH"], "PYTHONUNBUFFERED": "1"},
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "errors": "replace",
        "pass_fds": [note.fileno()],
    }
    last: deque[str] = deque(maxlen=20)
    with slots.running(command, **options) as process:
        note.write(str(process.pid))
        note.flush()
        # What the command leaves behind would keep its output open.
        Thread(target=lambda: (process.wait(), _end_group(process)), daemon=True).start()
        for line in process.stdout or ():
            if line := line.strip():
                last.append(line)
                logger.info(line)
        status = process.wait()
    if status == USER_ERROR:
        raise UserError(
            f"stage {name}: {last[-1].removeprefix('error: ')}" if last else f"stage {name} refused its settings."
        )
    if status != 0:
        raise StageFailed(f"stage {name} ended with status {status}; it last said:\n" + "\n".join(last))


def _end_group(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
