"""`thaw train` on two processes, started by DeepSpeed's launcher, and on one."""

import json
import os
import shutil
import subprocess
import sys
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
    # Training in this process, as other tests do, leaves its rank behind.
    outside = {name: value for name, value in os.environ.items() if not OUTSIDE.match(name)}
    finals, records = [], []
    for processes, stage in ((1, 0), (2, 0), (2, 3)):
        out = tmp_path / f"on-{processes}-stage-{stage}"
        database = shutil.copy(empty_database, tmp_path / f"{out.name}.db")
        more = (f"compute.processes={processes}", f"train.zero_stage={stage}")
        options = [part for change in (*changes, *more) for part in ("--set", change)]
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


def test_settings_that_cannot_work_are_refused() -> None:
    for change, said in (
        ("compute.processes=17", "a group is not split"),
        ("train.offload=true", "needs ZeRO"),
    ):
        with pytest.raises(UserError, match=said):
            small_settings("train.groups_per_step=16", change)
