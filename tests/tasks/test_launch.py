"""`thaw train` on two processes, started by DeepSpeed's launcher, and on one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from components.errors import TemporaryError, UserError
from components.policy.base import make_base
from tasks.inputs import make_data
from tasks.launch import launch
from tests.conftest import SMALL, small_settings
from tests.flows.scratch import OUTSIDE


@pytest.mark.slow
def test_two_processes_train_what_one_does(project: Path, empty_database: Path, tmp_path: Path) -> None:
    changes = [*SMALL, f"task.path={project / 'data/skills'}", "train.groups_per_step=5", "train.steps=3"]
    settings = small_settings("train.groups_per_step=5", "train.steps=3")
    make_data(settings, tmp_path / "data")
    make_base(settings, tmp_path / "base")
    # Training in this process, as other tests do, leaves its rank behind.
    outside = {name: value for name, value in os.environ.items() if not OUTSIDE.match(name)}
    finals = []
    for processes in (1, 2):
        database = shutil.copy(empty_database, tmp_path / f"{processes}.db")
        options = [part for change in [*changes, f"compute.processes={processes}"] for part in ("--set", change)]
        out = tmp_path / f"on-{processes}"
        command = [sys.executable, "-m", "flows.cli", "train", "--arm", "garl-q0.75", "--out", out, *options]
        done = subprocess.run(
            [*command, "--data", tmp_path / "data", "--base", tmp_path / "base"],
            cwd=project,
            env=outside | {"MLFLOW_TRACKING_URI": f"sqlite:///{database}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("in MLflow") == 1
        finals.append(load_file(out / "final" / "model.safetensors"))
        assert not (out / "state").exists()
    one, two = finals
    for name, weight in one.items():
        assert (two[name] - weight).norm() <= 1e-5 * weight.norm(), name


@pytest.mark.slow
def test_a_killed_process_is_told(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second process is killed as soon as Python starts in it."""
    code = "import os, signal\nif os.environ.get('RANK') == '1':\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    (tmp_path / "sitecustomize.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{project}")
    with pytest.raises(TemporaryError, match=r"a training process was killed by signal 9; run it again to resume"):
        launch(small_settings("compute.processes=2").compute, ["--help"])


def test_settings_that_cannot_work_are_refused() -> None:
    for change, said in (
        ("compute.processes=17", "a group is not split"),
        ("train.offload=true", "needs ZeRO"),
    ):
        with pytest.raises(UserError, match=said):
            small_settings("train.groups_per_step=16", change)
