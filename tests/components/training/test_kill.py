"""kill -9 in the middle of things: the run that goes on afterwards ends with the same bits."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from components.policy.base import make_base
from tasks.inputs import make_data
from tests.components.training.killed import MOMENTS
from tests.conftest import small_settings


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder, settings = tmp_path_factory.mktemp("inputs"), small_settings()
    make_data(settings, folder / "data")
    make_base(settings, folder / "base")
    return folder / "data", folder / "base"


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(
    inputs: tuple[Path, Path], project: Path, empty_database: Path, tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}

    def run(name: str, moment: str) -> int:
        (tmp_path / name).mkdir(exist_ok=True)
        if not (tmp_path / name / "mlflow.db").exists():
            shutil.copy(empty_database, tmp_path / name / "mlflow.db")
        command = [sys.executable, "-m", "tests.components.training.killed", *inputs, tmp_path / name / "out", moment]
        return subprocess.run(command, cwd=project, env=environment, check=False, timeout=300).returncode

    for moment in ("backward", "checkpoint", "model", "sampling"):
        assert moment in MOMENTS
        assert run("killed", moment) == -signal.SIGKILL
        assert not (tmp_path / "killed" / "out" / "final").exists()
    assert run("killed", "never") == run("steady", "never") == 0
    steady, killed = (tmp_path / name / "out" for name in ("steady", "killed"))
    assert not (killed / "state").exists()
    for name in ("final/model.safetensors", "checkpoints/step-4/model.safetensors", "curves.csv"):
        assert (killed / name).read_bytes() == (steady / name).read_bytes(), name
