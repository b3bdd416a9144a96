"""Flow runs whose process is gone are shown as what they are: crashed.

A flow that is killed cannot say so. While it runs, its process keeps a note named after the run locked, in Prefect's
folder of this user; the kernel lifts the lock however the process dies. Whoever next reaches the server from this
machine takes the notes that nobody holds for what they mean.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_HOME
from prefect.states import Crashed

NOTES = "thaw-runs"
WHY: State = Crashed(message="Its process was killed, or its machine went down.")
_held: dict[UUID, TextIO] = {}


# Prefect hands these three over by name, where a worker's runner calls a hook.
def sign(flow: Flow, flow_run: FlowRun, state: State) -> None:  # noqa: ARG001
    """Hook for a flow's `on_running`: hold the run's note until this process ends."""
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / f"{flow_run.id}.{os.getpid()}"
    note = written.open("w")
    fcntl.flock(note, fcntl.LOCK_EX)
    written.rename(folder / str(flow_run.id))  # nobody finds it before it is locked
    _held[flow_run.id] = note


def strike(flow: Flow, flow_run: FlowRun, state: State) -> None:  # noqa: ARG001
    """Hook for a flow's end, of which the server knows by now: its note is needed no more."""
    (_folder() / str(flow_run.id)).unlink(missing_ok=True)
    if note := _held.pop(flow_run.id, None):
        note.close()


# A flow takes all of these: @flow(name="...", **NOTED).
NOTED: dict[str, Any] = {
    "on_running": [sign],
    **{end: [strike] for end in ("on_completion", "on_failure", "on_cancellation", "on_crashed")},
}


def mark_lost_runs() -> None:
    """Tell the server which flow runs of this machine have crashed. Notes on runs of another server stay."""
    for path, _note in _unheld():
        with suppress(ObjectNotFound, FileNotFoundError):
            _mark(UUID(path.name))
            path.unlink()


def lost_runs() -> list[UUID]:
    """The flow runs of this machine that nobody has marked yet."""
    return [UUID(path.name) for path, _note in _unheld()]


def _unheld() -> Iterator[tuple[Path, TextIO]]:
    """The notes that nobody holds, each held by us while it is looked at."""
    for path in _folder().glob("*"):
        if path.suffix:  # not locked yet, perhaps
            continue
        with suppress(FileNotFoundError, BlockingIOError), path.open() as note:
            fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield path, note


def _folder() -> Path:
    return Path(str(PREFECT_HOME.value())) / NOTES


def _mark(run: UUID) -> None:
    """Mark a run, and its tasks, as crashed, unless it has said how it ended."""
    with get_client(sync_client=True) as client:
        if client.read_flow_run(run).state.is_final():
            return
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))
        for task in tasks:
            if task.state is None or not task.state.is_final():  # one that was made and never told of has none
                client.set_task_run_state(task.id, WHY, force=True)
        client.set_flow_run_state(run, WHY, force=True)
