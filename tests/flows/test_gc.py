"""`thaw gc`: it shows first, and removes when told to; a training run keeps its folder to itself."""

import json
import shutil
from pathlib import Path

import pytest

from components.training import loop
from tasks.folder_lock import alone_in
from tasks.inputs import make_data
from tests.conftest import SMALL, small_settings
from tests.flows.conftest import Thaw
from tests.tasks.toy import toy_project


@pytest.fixture
def project(tmp_path: Path, empty_database: Path) -> Path:
    folder = toy_project(tmp_path / "toy")
    shutil.copy(empty_database, folder / "mlflow.db")
    return folder


def test_what_is_unused_is_shown_and_removed_when_told(project: Path, thaw: Thaw):
    assert thaw(project, "gc").out == "nothing here is unused\n"
    partial = project / "build/train/grpo/0/checkpoints/step-2.partial"
    partial.mkdir(parents=True)
    (partial / "weights").write_bytes(bytes(1500))
    (partial / "again").hardlink_to(project / "raw.txt")
    shown = thaw(project, "gc").out.splitlines()
    assert shown == [
        "  1.5 kB  build/train/grpo/0/checkpoints/step-2.partial  half-written by a process that is gone",
        "nothing was removed; `thaw gc --yes` frees 1.5 kB; 4 B more have a name elsewhere too, and stay",
    ]
    assert partial.is_dir()
    found = json.loads(thaw(project, "gc", "--json").out)
    assert found.pop("unused") == [{"bytes": 1504, "paths": [str(partial)], "why": shown[0].split("  ")[-1]}]
    assert found == {"freed": 1500, "named_elsewhere": 4, "removed": False}
    done = thaw(project, "gc", "--yes").out.splitlines()
    assert done == [shown[0], "removed: 1.5 kB are free again; 4 B more have a name elsewhere too, and stay"]
    assert not partial.exists()
    assert (project / "raw.txt").read_text() == "raw\n"
    assert thaw(project, "gc", "--yes").out == "nothing here is unused\n"


def test_outside_of_a_project_it_says_so(tmp_path: Path, thaw: Thaw):
    said = thaw(tmp_path, "gc", "--yes")
    assert (said.status, said.out) == (2, "")
    assert said.err == f"error: {tmp_path} is no project of DVC; `thaw gc` runs inside a clone of Thaw.\n"
    assert list(tmp_path.iterdir()) == []


def test_a_training_run_keeps_its_folder_to_itself(project: Path, thaw: Thaw, monkeypatch: pytest.MonkeyPatch):
    seen: list[bool] = []

    def looked(*_: object, out: Path, **_options: object) -> None:
        with alone_in(out) as alone:
            seen.append(alone)

    monkeypatch.setattr(loop, "train", looked)
    make_data(small_settings(), project / "data")
    (project / "base").mkdir()
    (project / "base" / "config.json").write_text("{}")
    settings = [part for change in SMALL for part in ("--set", change)]
    given = ("--data", "data", "--base", "base", "--set", f"task.path={small_settings().task.path}", *settings)
    assert thaw(project, "train", "--arm", "grpo", "--out", "runs/mine", "--until", "2", *given).status == 0
    assert seen == [False]
    with alone_in(project / "runs/mine") as alone:
        assert alone
