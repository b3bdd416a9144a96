"""A project in a folder of its own, as a fresh clone would be, with the real commands run in it."""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from components.tracking.runs import Tracker, connect
from tests.conftest import PROJECT, SMALL

# Long enough to be killed in the middle, and strides so long that every arm ends up with samples of its own.
SETTINGS = [
    *SMALL, "train.steps=16", "train.validate_every=4", "train.learning_rate=0.01",
    "arms=[grpo, garl-q0.75, paft-q0.75]",
]  # fmt: skip
# What the environment may say of stores, servers and launchers, and a setting that makes every first import slow.
OUTSIDE = re.compile(r"(MLFLOW|PREFECT|DVC|THAW|MASTER)_|(LOCAL_)?RANK$|WORLD_SIZE$|PYTHONDONTWRITEBYTECODE$")
LEFT_BY_BUILDS = ["--", ".", ":!dvc.lock", ":!experiments"]
MLFLOW_PATHS = [
    ("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"),
    ("model_versions", "source"), ("model_versions", "storage_location"),
]  # fmt: skip


@dataclass(frozen=True)
class Scratch:
    """One project; `prefect` is the folder that Prefect keeps its own files in.

    program: the folder whose program is run; by default the project's own, whose files DVC tracks in it.
    more: what commands find in their environment beside the usual.
    """

    folder: Path
    prefect: Path
    program: Path | None = None
    more: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def clone(cls, folder: Path, prefect: Path, settings: Sequence[str] = SETTINGS) -> "Scratch":
        """The project's files as they are now, committed to a new git repository, with its data pulled.

        What a build leaves in the project for git to take (dvc.lock, experiments/) is none of them, nor are projects
        that `thaw init` has made in it.
        """
        scratch = cls(folder, prefect)
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *LEFT_BY_BUILDS],
            cwd=PROJECT, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        names = listed.split("\0")[:-1]
        others = tuple(name.removesuffix("dvc.yaml") for name in names if name.endswith("/dvc.yaml"))
        for name in names:
            if (source := PROJECT / name).is_file() and not name.startswith(others):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, folder / name)
        if settings:  # else params.yaml keeps its comments
            scratch.change(*settings)
        scratch.commit()
        scratch.run("dvc", "pull", "--quiet", "data.dvc")
        return scratch

    def copy(self, folder: Path) -> "Scratch":
        """Everything in another folder: sources, build, cache, and MLflow's store, which names files by whole paths."""
        shutil.copytree(self.folder, folder)
        if (folder / "mlflow.db").exists():
            with sqlite3.connect(folder / "mlflow.db") as database:
                for table, column in MLFLOW_PATHS:
                    database.execute(
                        f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (f"{self.folder}/", f"{folder}/")
                    )
        return Scratch(folder, self.prefect)

    def untrain(self, arm: str) -> None:
        """Remove what there is of an arm's training, and DVC's memory of having done it."""
        for path in (f"build/train/{arm}", ".dvc/cache/runs"):
            shutil.rmtree(self.folder / path, ignore_errors=True)
        lock = self.folder / "dvc.lock"
        content = yaml.safe_load(lock.read_text(encoding="utf-8"))
        content["stages"].pop(f"train@{arm}-0", None)
        lock.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        assert f"train@{arm}-0" in self.stale()

    def commit(self) -> None:
        self.run("git", "init", "--quiet")
        self.run("git", "add", "--all")
        who = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false")
        self.run("git", *who, "commit", "--quiet", "--message", "as it is")

    def change(self, *settings: str) -> None:
        """Edit params.yaml: "train.steps=4"."""
        path = self.folder / "params.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for setting in settings:
            name, _, text = setting.partition("=")
            target: Any = content
            *sections, last = name.split(".")
            for section in sections:
                target = target[section]
            target[last] = yaml.safe_load(text)
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

    @property
    def environment(self) -> dict[str, str]:
        programs = str(Path(sys.executable).parent)
        kept = {name: value for name, value in os.environ.items() if not OUTSIDE.match(name)}
        return kept | {
            "PATH": programs + os.pathsep + os.environ["PATH"],
            "PYTHONPATH": str(self.program or self.folder),
            "PREFECT_HOME": str(self.prefect),
            "COLUMNS": "120",
            **self.more,
        }

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command in a process group of its own; its output goes into one file, beside the folder."""
        with self.folder.with_suffix(".log").open("a") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                text=True, start_new_session=True, preexec_fn=heed_signals, **options,
            )  # fmt: skip

    def run(self, *command: str, status: int = 0, timeout: float = 400) -> str:
        """Run a command to its end; what it said on both channels."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        assert done.returncode == status, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-6000:]}"
        return done.stdout

    def tracker(self) -> Tracker:
        return connect(self.folder)

    def stale(self) -> set[str]:
        """The stages that `dvc status` finds out of date."""
        status = self.run("dvc", "status", "--json")
        return set(yaml.safe_load(status.strip().splitlines()[-1]))


def heed_signals() -> None:
    """As a command at a terminal does, also where the tests themselves were started in the background."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def built_in(log: str) -> set[str]:
    """The stages that a flow says it has built."""
    return set(re.findall(r"\| (\S+) \| built in ", log))


def until(condition: Callable[[], Any], seconds: float = 120, every: float = 0.005) -> Any:
    """Wait for something to be true; its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} seconds"
        time.sleep(every)
    return value


def trainer(pid: int) -> int:
    """The training process below another one; 0 if there is none."""
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            line = process.cmdline()
            if "train" in line and any(part.endswith("/thaw") for part in line):
                return process.pid
    return 0


def lives(pid: int) -> bool:
    """Whether a process still runs; one that has ended and only waits to be asked for its status does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
