"""What a process is at work on, in a small file that `thaw status` reads: how far it is, how long still, how it ended.

The file lies in build/jobs where the command was started (of a sweep: in the folder of its build), is named after what
the command makes, and goes when that is made. Of one whose process is gone it tells what was interrupted.
"""

import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock

import psutil

from components.names import as_folder

JOBS = Path("build/jobs")
DELAY = 2.0  # seconds, of which shorter work leaves no file
WRITE_SECONDS = 1.0  # at most so often is a file written
INTERRUPTED = "interrupted"
LONGEST = 200  # characters of a file's name


@dataclass
class Stage:
    """One of a sweep's, as far as the sweep's process knows."""

    state: str = "waiting"  # running, built, up to date, paused (by a race), failed, interrupted
    began: float | None = None
    seconds: float | None = None  # that it took
    why: str = ""  # it failed


@dataclass
class Job:
    """What is in the file. Times are seconds since 1970, `left` is seconds."""

    what: str
    folder: str  # that is being made
    command: str  # that goes on where this one ends; empty where it is none of a user's
    host: str
    pid: int
    created: float  # when the process was, since ids are used again
    began: float
    told: float = 0.0  # when this was written
    part: str = ""  # what `done` of `total` is about
    done: int = 0
    total: int | None = None
    left: float | None = None
    said: str = ""  # in words, behind it
    figures: dict[str, float] = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=dict)
    parallel: int = 1  # stages at the same time
    ended: str = ""  # why it ended before its time

    @property
    def state(self) -> str:
        """running, failed, interrupted, or killed: its process is gone and did not say why."""
        if self.ended:
            return "interrupted" if self.ended == INTERRUPTED else "failed"
        return "running" if self._lives() else "killed"

    def interrupt_stages(self) -> None:
        """Those that ran when the sweep's process ended, which ended with it."""
        for stage in self.stages.values():
            stage.state = INTERRUPTED if stage.state == "running" else stage.state

    def _lives(self) -> bool:
        if self.host != socket.gethostname():
            return True  # nobody knows better here
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.created) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


class _Note:
    """A job and its file."""

    def __init__(self, file: Path, job: Job, *, silent: bool) -> None:
        self.file, self.job, self._silent = file, job, silent
        self._lock, self._written, self._over = Lock(), False, False

    def write(self, *, now: bool = False) -> None:
        """Write the file, unless it is new or too early; work goes on where it cannot be written."""
        job, moment = self.job, time.time()
        early = moment - job.began < DELAY or moment - job.told < WRITE_SECONDS
        if self._silent or self._over or (early and not now):
            return
        with self._lock, suppress(OSError):
            other = None if self._written else read_job(self.file)
            if other and other.state == "running" and other.host == job.host:
                self._silent = True  # somebody else is at the same
                return
            job.told, self._written = moment, True
            self.file.parent.mkdir(parents=True, exist_ok=True)
            partial = self.file.with_suffix(f".{job.pid}.partial")
            partial.write_text(json.dumps(asdict(job)), encoding="utf-8")
            os.replace(partial, self.file)

    def end(self, error: BaseException | None) -> None:
        """Remove the file, also one that an earlier attempt has left, or keep it to say why this one ended."""
        if error is None and not self._silent:
            with suppress(OSError):
                self.file.unlink(missing_ok=True)
        elif self._written:
            self.job.ended = _why(error)
            self.job.interrupt_stages()
            self.write(now=True)
        self._over = True  # a stage's thread may end later


_notes: list[_Note] = []  # the innermost last


@contextmanager
def working_on(
    what: str,
    folder: Path,
    *,
    build: Path = Path(),
    name: str = "",
    stages: Iterable[str] = (),
    parallel: int = 1,
    said: str = "",
) -> Iterator[Job]:
    """Keep a file about the work inside, from the first sign of progress on; with `stages` or `said` from now on.

    folder: that is made. build: below which the file lies. name: of the file; by default after `folder`.
    stages: of a sweep, `parallel` of which run at the same time.
    """
    job = Job(
        what, str(folder.resolve()), own_command(), socket.gethostname(), os.getpid(), psutil.Process().create_time(),
        time.time(), stages={stage: Stage() for stage in stages}, parallel=parallel, said=said,
    )  # fmt: skip
    note = _Note(build / JOBS / f"{name or file_name(folder, build)}.json", job, silent=not speaks())
    _notes.append(note)
    if stages or said:
        note.write(now=True)
    try:
        yield job
    except BaseException as error:
        note.end(error)
        raise
    else:
        note.end(None)
    finally:
        _notes.remove(note)


def report(
    part: str, done: int, total: int | None, left: float | None, said: str, figures: Mapping[str, float]
) -> None:
    """How far the work of this process is."""
    if _notes:
        job = _notes[-1].job
        job.part, job.done, job.total, job.left, job.said, job.figures = part, done, total, left, said, dict(figures)
        _notes[-1].write()


@contextmanager
def running_stage(name: str) -> Iterator[Stage]:
    """Note that the sweep in this process runs a stage; whoever runs it sets the state that it ends with."""
    note = next((note for note in reversed(_notes) if name in note.job.stages), None)
    stage = note.job.stages[name] if note else Stage()
    stage.state, stage.began, stage.seconds, stage.why = "running", time.time(), None, ""
    try:
        if note:
            note.write(now=True)
        yield stage
    except BaseException as error:
        stage.state, stage.why = "failed", _why(error)
        raise
    finally:
        stage.seconds = time.time() - stage.began
        if note:
            note.write(now=True)


def sweep_at_work() -> tuple[Job, Path] | None:
    """The sweep that this process runs, and the folder of its jobs' files."""
    return next(((note.job, note.file.parent) for note in reversed(_notes) if note.job.stages), None)


def read_job(file: Path) -> Job | None:
    """What a file says; None where there is none, or none of this version."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        job = Job(**found | {"stages": {name: Stage(**stage) for name, stage in found["stages"].items()}})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if job.state != "running":
        job.interrupt_stages()
    return job


def file_name(folder: Path, build: Path) -> str:
    """What the file about a folder is called: build/train/grpo/0 gives train-grpo-0, as its stage does."""
    place = folder.resolve()
    for above in ((build / "build").resolve(), build.resolve()):
        if place.is_relative_to(above):
            return as_folder(str(place.relative_to(above)))[-LONGEST:]
    return as_folder(str(place).strip("/"))[-LONGEST:]


def stage_file(stage: str, suffix: str) -> Path:
    """A stage's file below the folder of its build: its job (`.json`) or its log (`.log`)."""
    return JOBS / f"{stage.replace('@', '-')}{suffix}"


def own_command() -> str:
    """The command that this process was started by, as a user would write it again; empty where no user did."""
    program, *arguments = sys.argv
    name = Path(program).name
    if Path(program).parts[-2:] == ("studies", "__main__.py"):
        return shlex.join(["python", "-m", "studies", *arguments])
    return shlex.join(["thaw", *arguments]) if name in ("thaw", "cli.py") else ""


def speaks() -> bool:
    """Whether this process is the first of those that a launcher started, or alone."""
    return os.environ.get("RANK", "0") == "0"


def _why(error: BaseException | None) -> str:
    if not isinstance(error, Exception):  # ctrl-C, or a signal to end
        return INTERRUPTED
    return (str(error) or type(error).__name__).splitlines()[0]
