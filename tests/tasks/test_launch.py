"""Commands on two processes, started by DeepSpeed's launcher, and on one."""

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

from components.errors import TemporaryError, UserError
from components.policy.base import make_base
from tasks.inputs import make_data
from tasks.launch import launch
from tests.conftest import PROJECT, SMALL, small_settings
from tests.flows.scratch import OUTSIDE

CHANGES = [
    *SMALL, f"task.path={PROJECT / 'data/skills'}", "train.groups_per_step=5", "train.learning_rate=0.01",
]  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and base."""
    folder = tmp_path_factory.mktemp("inputs")
    make_data(small_settings(), folder / "data")
    make_base(small_settings(), folder / "base")
    return folder


@pytest.mark.slow
def test_two_processes_train_and_validate_what_one_does(
    project: Path, inputs: Path, empty_database: Path, tmp_path: Path
) -> None:
    """With whole weights and with sharded ones, which are whole nowhere but in the model that is sampled from."""
    changes = [*CHANGES, "train.steps=3", "rollout.batch_rollouts=8"]
    finals, records = [], []
    for processes, stage in ((1, 0), (2, 0), (2, 3)):
        out = tmp_path / f"on-{processes}-stage-{stage}"
        database = shutil.copy(empty_database, tmp_path / f"{out.name}.db")
        more = (f"compute.processes={processes}", f"train.zero_stage={stage}")
        said = thaw(project, training(inputs, out), [*changes, *more], MLFLOW_TRACKING_URI=f"sqlite:///{database}")
        assert said.count("in MLflow") == 1
        finals.append(load_file(out / "final" / "model.safetensors"))
        records.append(json.loads((out / "train.json").read_text(encoding="utf-8")))
        assert not (out / "state").exists()
    base = load_file(inputs / "base" / "model.safetensors")
    for final, record in zip(finals[1:], records[1:], strict=True):
        assert final.keys() == base.keys()
        for name, weight in finals[0].items():
            assert (final[name] - weight).norm() <= 1e-5 * weight.norm(), name
        for step, found in records[0]["validated"].items():
            assert record["validated"][step]["right"] == found["right"]
            assert record["validated"][step]["log_p"] == pytest.approx(found["log_p"], rel=1e-4)


@pytest.mark.slow
def test_two_processes_evaluate_what_one_does(project: Path, inputs: Path, tmp_path: Path) -> None:
    for processes in (1, 2):
        command = ["evaluate", inputs / "base", "--data", inputs / "data", "--out", tmp_path / f"on-{processes}"]
        said = thaw(project, command, [*CHANGES, "rollout.batch_rollouts=8", f"compute.processes={processes}"])
        assert said.count("every sample is in") == 1
    for name in ("evaluation.json", "metrics.json", "samples.jsonl"):
        assert filecmp.cmp(tmp_path / "on-1" / name, tmp_path / "on-2" / name, shallow=False), name


@pytest.mark.slow
def test_two_processes_find_in_a_probe_what_one_does(
    project: Path, inputs: Path, empty_database: Path, tmp_path: Path
) -> None:
    """With sharded weights, which are whole nowhere but in the model that is sampled from."""
    changes = [*CHANGES, "arms=[garl-q1,paft-q0.5]", "probe.look_ahead=3", "rollout.batch_rollouts=8"]
    probes, forecasts = [], []
    for processes, stage in ((1, 0), (2, 3)):
        out = tmp_path / f"on-{processes}"
        database = shutil.copy(empty_database, tmp_path / f"{out.name}.db")
        command = ["probe", "--data", inputs / "data", "--base", inputs / "base", "--out", out]
        more = (f"compute.processes={processes}", f"train.zero_stage={stage}")
        said = thaw(project, command, [*changes, *more], MLFLOW_TRACKING_URI=f"sqlite:///{database}")
        assert said.count("P of 8 training examples") == 1
        probes.append(json.loads((out / "probe.json").read_text(encoding="utf-8")))
        forecasts.append(json.loads((out / "forecast.json").read_text(encoding="utf-8")))
    assert filecmp.cmp(tmp_path / "on-1/samples.jsonl", tmp_path / "on-2/samples.jsonl", shallow=False)
    assert probes[1]["base"] == probes[0]["base"]
    assert probes[1]["log_p"] == pytest.approx(probes[0]["log_p"], rel=1e-6)
    for alone, together in zip(*forecasts, strict=True):
        assert together["before"] == pytest.approx(alone["before"], rel=1e-6)
        assert together["after"] == pytest.approx(alone["after"], rel=1e-4)
        assert together["gradient"]["norm"] == pytest.approx(alone["gradient"]["norm"], rel=1e-5)
        assert together["gradient"]["agreement"] == pytest.approx(alone["gradient"]["agreement"], rel=1e-3)


def training(inputs: Path, out: Path) -> list[object]:
    given = ["--data", inputs / "data", "--base", inputs / "base"]
    return ["train", "--arm", "garl-q0.75", "--out", out, *given]


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


@pytest.mark.slow
def test_a_killed_process_is_told(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second process is killed as soon as Python starts in it."""
    code = "import os, signal\nif os.environ.get('RANK') == '1':\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    (tmp_path / "sitecustomize.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{project}")
    with pytest.raises(TemporaryError, match=r"a training process was killed by signal 9; run it again to resume"):
        launch(small_settings("compute.processes=2").compute, ["--help"])


def test_settings_that_cannot_work_are_refused() -> None:
    for change, said in (("compute.processes=17", "a group is not split"), ("train.offload=true", "needs ZeRO")):
        with pytest.raises(UserError, match=said):
            small_settings("train.groups_per_step=16", change)
