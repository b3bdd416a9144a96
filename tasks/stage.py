"""One Prefect task a stage: run its command in a process group of its own, show what it says, record the result."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from threading import Semaphore

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from components.errors import UserError
from tasks.build import Build

USER_ERROR = 2  # the exit status of a command whose input or settings are bad


class StageFailed(Exception):
    """A stage's command ended badly, for a reason other than its settings."""


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def run_stage(folder: Path, name: str, slots: Semaphore) -> str:
    """Bring one DVC stage up to date; returns "built" or "up to date".

    slots: how many stages run at the same time.

    Raises:
        UserError: the stage refused its input or settings.
        StageFailed: its command failed.
    """
    logger = get_run_logger()
    build = Build(folder)
    with slots:
        stale = build.begin(name)
        if stale is None:
            logger.info("up to date")
            return "up to date"
        started = time.monotonic()
        _run(stale.command, folder, name, logger)
        build.commit(stale)
        logger.info("built in %.0f s", time.monotonic() - started)
    return "built"


def _run(command: str, folder: Path, name: str, logger) -> None:
    """Run a shell command and log its lines as they come; whatever happens, nothing of it is left running."""
    programs = str(Path(sys.executable).parent)  # where `thaw` lies, also when the environment is not activated
    process = subprocess.Popen(
        command,
        shell=True,
        cwd=folder,
        env=os.environ | {"PATH": programs + os.pathsep + os.environ["PATH"], "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    last: deque[str] = deque(maxlen=20)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line := line.strip():
                last.append(line)
                logger.info(line)
        status = process.wait()
    finally:
        _end_group(process)
    if status == USER_ERROR:
        raise UserError(f"stage {name}: {last[-1].removeprefix('error: ')}" if last else f"stage {name} refused its settings.")
    if status != 0:
        raise StageFailed(f"stage {name} ended with status {status}; it last said:\n" + "\n".join(last))


def _end_group(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
