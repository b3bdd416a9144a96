"""A real MLflow store in a folder of its own for each test."""

import shutil
from pathlib import Path

import pytest

from components.tracking.runs import Tracker, connect


@pytest.fixture(autouse=True)
def no_other_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no build has left a dvc.lock
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")  # for the processes that tests start


@pytest.fixture
def root(tmp_path: Path, empty_database: Path) -> Path:
    folder = tmp_path / "a project"  # the space is on purpose
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    return folder


@pytest.fixture
def tracker(root: Path) -> Tracker:
    return connect(root)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder as `save_pretrained` leaves it."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path / "checkpoint"
    (folder / "extra").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    (folder / "extra" / "vocab.txt").write_text("a\nb\n")
    save_file({"weight": torch.arange(12, dtype=torch.float32).reshape(3, 4)}, folder / "model.safetensors")
    return folder
