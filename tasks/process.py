"""Processes that end with the flow that started them: at most so many at a time, each with GPUs of its own."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any, Self

from tasks import guard

Process = subprocess.Popen[str]
LOOK_SECONDS = 1.0  # between two looks at whether a guard lives


class FlowEnded(Exception):
    """Nothing is started any more, because the flow is about to end."""


def start_guarded(command: str, **options: Any) -> Process:
    """Start a shell command that ends when this process does, however that dies; see guard.py.

    options: of subprocess.Popen, all but those for standard input.
    """
    return subprocess.Popen(
        [sys.executable, "-I", guard.__file__, command],
        stdin=subprocess.PIPE, text=True, start_new_session=True, **options,
    )  # fmt: skip


def end_guarded(*processes: Process) -> None:
    """End guarded commands and everything they have started, and wait for it."""
    for process in processes:
        with suppress(OSError):
            process.stdin.close()
    for process in processes:
        try:
            process.wait(2 * guard.GRACE)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()


class Watch:
    """Ends a process that says nothing for too long: a hung engine, a lost rank; and what lost its guard."""

    def __init__(self, process: Process, minutes: float) -> None:
        self.expired = False
        self._process, self._seconds = process, 60 * minutes
        self._over = Event()
        self.heard()
        Thread(target=self._wait, daemon=True).start()

    def heard(self) -> None:
        """It has said something: count from now on."""
        self._deadline = time.monotonic() + self._seconds

    def stop(self) -> None:
        """Watch no longer: the process has ended."""
        self._over.set()

    def _wait(self) -> None:
        while (left := self._deadline - time.monotonic()) > 0:
            if self._over.wait(min(left, LOOK_SECONDS)):
                return
            if self._process.poll() is not None:  # at an end of its own it would have left nothing
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, 9)
                return
        self.expired = True
        end_guarded(self._process)


class Slots:
    """How many stages run at the same time. On leaving, whatever still runs is ended and nothing is begun any more.

    On a machine with GPUs there are at most as many slots as GPUs, which are dealt out to them.

    with Slots(2) as slots:
        run_stage.submit(folder, "train@grpo-0", slots)
    """

    def __init__(self, number: int, gpus: Sequence[str] | None = None) -> None:
        gpus = visible_gpus() if gpus is None else gpus
        self.number = number = min(number, len(gpus)) or number
        self._free: SimpleQueue[dict[str, str]] = SimpleQueue()
        for slot in range(number):
            self._free.put({"CUDA_VISIBLE_DEVICES": ",".join(gpus[slot::number])} if gpus else {})
        self._lock = Lock()
        self._running: set[Process] = set()
        self._left = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._left = True
            end_guarded(*self._running)

    @contextmanager
    def taken(self) -> Iterator[dict[str, str]]:
        """Wait for a free slot and hold it; yields the environment of what runs in it."""
        slot = self._free.get()
        try:
            self.refuse_when_left()
            yield slot
        finally:
            self._free.put(slot)

    @contextmanager
    def running(self, command: str, **options: Any) -> Iterator[Process]:
        """A shell command under guard; whatever happens, nothing of it is left running."""
        with self._lock:
            self.refuse_when_left()
            process = start_guarded(command, **options)
            self._running.add(process)
        try:
            yield process
        finally:
            end_guarded(process)
            with self._lock:
                self._running.remove(process)

    def refuse_when_left(self) -> None:
        """Raise FlowEnded if the flow has."""
        if self._left:
            raise FlowEnded("the flow has ended")


def visible_gpus() -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES names, else all of the machine's, by index."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        if shutil.which("nvidia-smi") is None:
            return []
        ask = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        named = ",".join(subprocess.run(ask, capture_output=True, text=True, check=False).stdout.split())
    return [gpu.strip() for gpu in named.split(",") if gpu.strip()]


def programs_path() -> str:
    """PATH with the folder of this Python's programs first: `thaw` is found also where no environment is activated."""
    return str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", os.defpath)
