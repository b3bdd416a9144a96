"""One small sweep of the real pipeline, which many tests look at and none changes."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.cli import main
from tests.flows.scratch import Scratch


@dataclass(frozen=True)
class Swept:
    project: Scratch
    log: str  # what `thaw sweep` said

    def __getitem__(self, path: str) -> Path:
        return self.project.folder / "build" / path

    def json(self, path: str) -> Any:
        return json.loads(self[path].read_text(encoding="utf-8"))

    def lock(self) -> Any:
        """What dvc.lock says of every stage."""
        return yaml.safe_load((self.project.folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str


Thaw = Callable[..., Said]


@pytest.fixture
def thaw(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Thaw:
    """The command line without a process of its own: thaw(folder, "probe", "--out", "x")."""

    def run(folder: Path, *arguments: str) -> Said:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["thaw", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return Said(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture(autouse=True)
def no_other_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect's database, which takes seconds to make."""
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory, prefect_home: Path) -> Scratch:
    """A fresh clone, to be copied."""
    return Scratch.clone(tmp_path_factory.mktemp("fresh") / "project", prefect_home)


@pytest.fixture(scope="session")
def swept(fresh: Scratch, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """A fresh clone after `thaw sweep`: three arms, two of them at a time. To be looked at only."""
    project = fresh.copy(tmp_path_factory.mktemp("swept") / "project")
    return Swept(project, project.run("thaw", "sweep"))


@pytest.fixture
def copied(swept: Swept, tmp_path: Path) -> Scratch:
    """A copy of the swept project, to be changed."""
    return swept.project.copy(tmp_path / "project")
