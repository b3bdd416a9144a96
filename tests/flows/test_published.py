"""The published data sets, cold and warm, through the command of every step, as DVC runs them, with the tiny model."""

import json
import math
from pathlib import Path

import pytest
import yaml

from components.tracking.runs import connect
from tests.conftest import PROJECT, SMALL
from tests.flows.conftest import Thaw

ARM = "garl-q0.75"
SETTINGS = [
    *SMALL, f"arms=[{ARM}]", "task.train=8", "task.validation=4", "task.test=4", "task.max_prompt_tokens=4096",
    "rollout.group_size=2", "rollout.max_new_tokens=12", "rollout.answer_reserve=8",
    "probe.examples=4", "probe.look_ahead=1",
    "train.steps=2", "train.groups_per_step=2", "evaluation.samples=2",
]  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("task", "start"), [("finqa", "cold"), ("finqa", "warm"), ("hotpotqa", "cold"), ("musique", "warm")]
)
def test_a_published_data_set_goes_from_its_files_to_the_report(
    task: str, start: str, real_samples: Path, tmp_path: Path, thaw: Thaw
) -> None:
    (tmp_path / ".dvc").mkdir()  # makes it a project, so that MLflow's store lies in it
    (tmp_path / "params.yaml").write_bytes((PROJECT / "params.yaml").read_bytes())
    changed = [f"task.name={task}", f"task.path={real_samples / task}", f"task.start={start}", *SETTINGS]
    options = [part for setting in changed for part in ("--set", setting)]
    build = tmp_path / "build"
    made = ("--data", "build/data", "--base", "build/base")
    said = {}
    for command in (
        ("prepare",),
        ("base",),
        ("probe", *made, "--out", "build/probe"),
        ("train", "--arm", ARM, "--seed", "0", *made, "--out", f"build/train/{ARM}/0"),
        ("evaluate", f"build/train/{ARM}/0/final", "--data", "build/data", "--out", f"build/evaluate/{ARM}/0"),
        ("report",),
    ):
        result = thaw(tmp_path, *command, *options)
        assert result.status == 0, result.err
        said[command[0]] = result.out

    report = json.loads((build / "data/report.json").read_text())
    for split, facts in report.items():
        assert facts["present"] == facts["loaded"] + facts["duplicates"] + sum(facts["skipped"].values())
        assert facts["final"] + facts["too_long"] == {"train": 8, "validation": 4, "test": 4}[split]
        assert facts["prompt_tokens"]["max"] <= 4096
    lost = sum(facts["shortened"] + facts["too_long"] for facts in report.values())
    assert lost > 0  # pages and paragraphs of 4,096 bytes are rare
    assert ("shortened" in said["prepare"]) == (task != "finqa")

    probe = json.loads((build / "probe/probe.json").read_text())
    assert len(probe["log_p"]) == min(4, report["train"]["final"])
    assert all(math.isfinite(value) and value < 0 for value in probe["log_p"])  # P is seen without any success
    assert f"P of {len(probe['log_p'])} training examples" in said["probe"]
    assert "10^" in said["probe"]
    assert "#" in said["probe"]
    assert "RL stalls here: " in said["probe"]
    assert ARM in said["probe"]  # the one arm that it looked ahead for

    rows = {row["arm"]: row for row in json.loads((build / "report/results.json").read_text())}
    assert set(rows) == {"base", ARM}
    for row in rows.values():
        assert (row["task"], row["start"], row["maj_at_2"]) == (task, start, 0)
        assert ("value_at_1" in row) == (task == "finqa")
    tracker = connect(tmp_path)
    [version] = [found for found in tracker.registry.versions(f"thaw-{task}") if found.metrics.get("test/p_at_1") == 0]
    assert (version.tags["task"], version.tags["start"]) == (task, start)
    assert task in yaml.safe_load((tmp_path / "params.yaml").read_text())["hub"]
