"""One Prefect task a stage: run its command under guard, show what it says and how far it is, record the result."""

import fcntl
import logging
import os
import re
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock
from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.tasks import Task

from components.config import SweepSettings
from components.errors import TEMPORARY_ERROR, USER_ERROR, UserError
from components.job import running_stage, stage_file, sweep_at_work
from components.outlook import whole
from tasks.build import Build, StaleStage
from tasks.process import FlowEnded, Slots, Watch, programs_path
from tasks.workspace import stage_note

RETRY_SECONDS = 10  # between a failure and the next attempt
REAP_SECONDS = 60  # for what was killed to be gone
PROGRESS_SECONDS = 5  # at most so often is a progress bar of Prefect's moved
PERCENT = re.compile(r": (\d+)%, ")  # in the lines of components.progress


class StageFailed(Exception):
    """A stage's command ended badly, for a reason other than its settings."""


class StageLost(StageFailed):
    """A stage's command was killed, hung, or lost something it needs: it may succeed when it is tried again."""


class _TellInOneLine(logging.Filter):
    """Leaves out the traceback of what is no defect of the program."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], (UserError, StageFailed, FlowEnded)):
            record.exc_info = None
        return True


RUN_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")
for run_logger in RUN_LOGGERS:
    logging.getLogger(run_logger).addFilter(_TellInOneLine())


def _is_lost(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    with suppress(Exception):
        return isinstance(state.result(raise_on_failure=False), StageLost)
    return False


@task(task_run_name="{name}", cache_policy=NO_CACHE, retry_delay_seconds=RETRY_SECONDS, retry_condition_fn=_is_lost)
def run_stage(folder: Path, name: str, slots: Slots, limits: SweepSettings, until: int | None = None) -> str:
    """Bring one DVC stage up to date; returns "built" or "up to date".

    until: of a training stage, pause at this step of a race; nothing is recorded then, and it returns "paused".

    Tried again it goes on where it was: what a stage keeps beside its outputs (training's state/) outlives it.

    Raises:
        UserError: the stage refused its input or settings, or found no memory or disk space.
        StageLost: its command was killed, silent for too long, or lost what it depends on.
        StageFailed: its command failed in another way.
        FlowEnded: the flow has ended meanwhile.
    """
    logger = get_run_logger()
    with slots.taken() as environment, _held(folder, name) as note:
        started = time.monotonic()
        with running_stage(name) as stage:
            stage.state = _bring(folder, name, environment, slots, limits, note, until)
        if stage.state == "up to date":
            logger.info("up to date")
        elif stage.state == "built":
            logger.info("built in %.0f s", time.monotonic() - started)
            if (sweep := sweep_at_work()) and (left := whole(sweep[0])):
                logger.info("the sweep: %s", left)
    return stage.state


def _bring(
    folder: Path,
    name: str,
    environment: dict[str, str],
    slots: Slots,
    limits: SweepSettings,
    note: TextIO,
    until: int | None,
) -> str:
    """Bring a stage up to date whose turn it is; returns what run_stage does."""
    build = Build(folder)
    stale = build.begin(name)
    if stale is None:
        return "up to date"
    if until is not None:
        _run(replace(stale, command=f"{stale.command} --until {until}"), folder, environment, slots, limits, note)
        return "paused"
    _run(stale, folder, environment, slots, limits, note)
    build.commit(stale)
    return "built"


@contextmanager
def _held(folder: Path, name: str) -> Iterator[TextIO]:
    """Wait until no other flow runs this stage, and end what is left of it where flow and guard were both killed.

    Yields a note for the id of the stage's process group. Every process of the group keeps it locked, so that a locked
    note names a living group, never another one that got the same id later.
    """
    path = stage_note(folder, name)
    with FileLock(f"{path}.lock"), path.open("a+", encoding="utf-8") as note:
        deadline = time.monotonic() + REAP_SECONDS
        while not _locked(note):
            note.seek(0)
            if time.monotonic() > deadline:
                raise StageFailed(f"processes of an earlier run of {name} (group {note.read()}) cannot be ended.")
            with suppress(ValueError, ProcessLookupError):
                os.killpg(int(note.read()), signal.SIGKILL)
            time.sleep(0.1)
        note.truncate(0)
        yield note


def _locked(note: TextIO) -> bool:
    try:
        fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _run(
    stage: StaleStage, folder: Path, environment: dict[str, str], slots: Slots, limits: SweepSettings, note: TextIO
) -> None:
    """Run a stage's command and log its lines as they come."""
    logger = get_run_logger()
    options = {
        "cwd": folder,
        "env": os.environ | environment | {"PATH": programs_path(), "PYTHONUNBUFFERED": "1"},
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "errors": "replace",
        "pass_fds": [note.fileno()],
    }
    last: deque[str] = deque(maxlen=20)
    bar = _Bar(stage.name)
    with _log(folder / stage_file(stage.name, ".log")) as log, slots.running(stage.command, **options) as process:
        print(f"{datetime.now():%Y-%m-%d %H:%M:%S} {stage.command}", file=log)
        note.write(str(process.pid))
        note.flush()
        watch = Watch(process, limits.timeout_minutes)
        for line in process.stdout or ():
            watch.heard()
            if line := line.strip():
                last.append(line)
                print(line, file=log)
                logger.info(line)
                bar.read(line)
        watch.stop()
        status = process.wait()
    slots.refuse_when_left()
    said = "; it last said:\n" + "\n".join(last) if last else "."
    if watch.expired:
        raise StageLost(f"stage {stage.name} said nothing for {limits.timeout_minutes:g} minutes and was ended{said}")
    if status == USER_ERROR:
        raise UserError(f"stage {stage.name}: {last[-1].removeprefix('error: ') if last else 'refused its settings.'}")
    if status < 0 or status > 128:
        number = -status if status < 0 else status - 128
        raise StageLost(f"stage {stage.name} was killed by signal {number}{said}")
    if status == TEMPORARY_ERROR:
        raise StageLost(f"stage {stage.name} lost something it needs{said}")
    if status != 0:
        raise StageFailed(f"stage {stage.name} ended with status {status}{said}")
    bar.finish()


@contextmanager
def flow_log(path: Path) -> Iterator[None]:
    """Also write what flows and their tasks say inside into a file, behind what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8", errors="replace")
    handler.setFormatter(logging.Formatter("%(asctime)s | %(message)s", "%Y-%m-%d %H:%M:%S"))
    loggers = [logging.getLogger(name) for name in RUN_LOGGERS]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


def _log(path: Path) -> TextIO:
    """The log of a stage, behind what it said before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a", encoding="utf-8", errors="replace", buffering=1)


class _Bar:
    """The progress bar of a stage's task in Prefect's UI, moved by the lines that the stage writes."""

    def __init__(self, name: str) -> None:
        self._name, self._id, self._moved = name, None, -PROGRESS_SECONDS

    def read(self, line: str) -> None:
        found = PERCENT.search(line)
        if found and time.monotonic() > self._moved + PROGRESS_SECONDS:
            self._move(float(found[1]))

    def finish(self) -> None:
        if self._id is not None:
            self._move(100.0)

    def _move(self, percent: float) -> None:
        self._moved = time.monotonic()
        if TaskRunContext.get() is None:
            return
        with suppress(Exception):  # a server that is away must not end training
            if self._id is None:
                key = "progress-" + re.sub(r"[^a-z0-9]+", "-", self._name.lower())
                self._id = create_progress_artifact(percent, key=key, description=self._name)
            else:
                update_progress_artifact(self._id, percent)
