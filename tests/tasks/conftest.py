from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tasks.toy import TRAIN, toy_project

Toy = Callable[..., Path]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """Makes a project of quick stages and goes there: toy("task.train=9", train=SCRIPT)."""

    def make(*overrides: str, train: str = TRAIN) -> Path:
        folder = toy_project(tmp_path / "toy", *overrides, train=train)
        monkeypatch.chdir(folder)
        return folder

    return make
