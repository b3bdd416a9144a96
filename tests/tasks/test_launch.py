"""`thaw train` on two processes, started by DeepSpeed's launcher, and on one."""

import filecmp
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file

from components.errors import UserError
from components.policy.base import make_base
from tasks.inputs import make_data
from tests.conftest import SMALL, small_settings
from tests.flows.scratch import OUTSIDE


@pytest.mark.slow
def test_two_processes_train_and_validate_what_one_does(project: Path, empty_database: Path, tmp_path: Path) -> None:
    """With whole weights and with sharded ones, which are whole nowhere but in the model that is sampled from."""
    changes = [
        *SMALL, f"task.path={project / 'data/skills'}", "train.groups_per_step=5", "train.steps=3",
        "train.learning_rate=0.01", "rollout.batch_rollouts=8",
    ]  # fmt: skip
    settings = small_settings("train.groups_per_step=5", "train.steps=3")
    make_data(settings, tmp_path / "data")
    make_base(settings, tmp_path / "base")
    inputs = ["--data", tmp_path / "data", "--base", tmp_path / "base"]
    finals, records = [], []
    for processes, stage in ((1, 0), (2, 0), (2, 3)):
        out = tmp_path / f"on-{processes}-stage-{stage}"
        database = shutil.copy(empty_database, tmp_path / f"{out.name}.db")
        more = (f"compute.processes={processes}", f"train.zero_stage={stage}")
        command = ["train", "--arm", "garl-q0.75", "--out", out, *inputs]
        said = thaw(project, command, [*changes, *more], MLFLOW_TRACKING_URI=f"sqlite:///{database}")
        assert said.count("in MLflow") == 1
        finals.append(load_file(out / "final" / "model.safetensors"))
        records.append(json.loads((out / "train.json").read_text(encoding="utf-8")))
        assert not (out / "state").exists()
    base = load_file(tmp_path / "base" / "model.safetensors")
    for final, record in zip(finals[1:], records[1:], strict=True):
        assert final.keys() == base.keys()
        for name, weight in finals[0].items():
            assert (final[name] - weight).norm() <= 1e-5 * weight.norm(), name
        for step, found in records[0]["validated"].items():
            assert record["validated"][step]["right"] == found["right"]
            assert record["validated"][step]["log_p"] == pytest.approx(found["log_p"], rel=1e-4)


@pytest.mark.slow
def test_two_processes_train_from_one_server_what_one_does(project: Path, empty_database: Path, tmp_path: Path) -> None:
    changes = [
        *SMALL, f"task.path={project / 'data/skills'}", "train.groups_per_step=5", "train.steps=3",
        "train.learning_rate=0.01", "rollout.engine=vllm", "rollout.placement=server",
    ]  # fmt: skip
    settings = small_settings()
    make_data(settings, tmp_path / "data")
    make_base(settings, tmp_path / "base")
    inputs = ["--data", tmp_path / "data", "--base", tmp_path / "base"]
    finals = []
    for processes in (1, 2):
        database, out = shutil.copy(empty_database, tmp_path / f"{processes}.db"), tmp_path / f"on-{processes}"
        command = ["train", "--arm", "garl-q0.75", "--out", out, *inputs]
        change = f"compute.processes={processes}"
        thaw(project, command, [*changes, change], MLFLOW_TRACKING_URI=f"sqlite:///{database}")
        finals.append(load_file(out / "final" / "model.safetensors"))
    for name, weight in finals[0].items():
        assert (finals[1][name] - weight).norm() <= 1e-4 * weight.norm(), name


@pytest.mark.slow
def test_two_processes_evaluate_what_one_does(project: Path, tmp_path: Path) -> None:
    changes = [*SMALL, f"task.path={project / 'data/skills'}", "rollout.batch_rollouts=8"]
    settings = small_settings()
    make_data(settings, tmp_path / "data")
    make_base(settings, tmp_path / "base")
    for processes in (1, 2):
        command = ["evaluate", tmp_path / "base", "--data", tmp_path / "data", "--out", tmp_path / f"on-{processes}"]
        said = thaw(project, command, [*changes, f"compute.processes={processes}"])
        assert said.count("every sample is in") == 1
    for name in ("evaluation.json", "metrics.json", "samples.jsonl"):
        assert filecmp.cmp(tmp_path / "on-1" / name, tmp_path / "on-2" / name, shallow=False), name


def thaw(project: Path, command: Sequence[object], changes: Sequence[str], **environment: str) -> str:
    """Run a command of the program by itself; what it said on its standard output."""
    # Training in this process, as other tests do, leaves its rank behind.
    outside = {name: value for name, value in os.environ.items() if not OUTSIDE.match(name)}
    options = [part for change in changes for part in ("--set", change)]
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *map(str, command), *options],
        cwd=project, env=outside | environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_settings_that_cannot_work_are_refused() -> None:
    server = ("rollout.engine=vllm", "rollout.placement=server")
    for changes, said in (
        (["compute.processes=17"], "a group is not split"),
        (["train.offload=true"], "needs ZeRO"),
        ([*server, "compute.hostfile=hosts"], "start `vllm serve` yourself"),
        ([*server, "rollout.placement=http://a:1,b:2"], "rollout.placement"),
    ):
        with pytest.raises(UserError, match=said):
            small_settings("train.groups_per_step=16", *changes)
