"""A study, small: its sweeps run like any other, and its figures stand beside its question; run again, nothing is."""

import json
import sys

import pytest
import yaml

from tests.flows.scratch import Scratch, built_in

pytestmark = pytest.mark.slow


def test_a_study_leaves_figures_and_a_table_and_is_run_once(copied: Scratch):
    folder = copied.folder / "studies" / "tiny"
    folder.mkdir()
    study = {
        "question": "Does it run?",
        "set": {"seeds": [3], "arms": ["garl-q1"], "train.steps": 2, "train.validate_every": 2},
        "sweeps": [{"name": "slow", "set": {"train.learning_rate": 0.001}}],
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    log = copied.run(sys.executable, "-m", "studies", "tiny")
    assert {"train@garl-q1-3", "evaluate@garl-q1-3", "report"} <= built_in(log)
    base, arm = json.loads((folder / "result.json").read_text())
    assert (base["arm"], base["seed"]) == ("base", None)
    assert (arm["sweep"], arm["arm"], arm["seed"], arm["steps"]) == ("slow", "garl-q1", 3, 2)
    assert arm["set"] == {
        "arms": ["garl-q1"],
        "train.steps": 2,
        "train.validate_every": 2,
        "train.learning_rate": 0.001,
    }
    assert arm["seconds"] > 0
    table = (folder / "table.md").read_text()
    assert table.startswith("**Does it run?**")
    assert "slow (`train.learning_rate=0.001`)" in table
    assert "`python -m studies tiny`" in table
    assert built_in(copied.run(sys.executable, "-m", "studies", "tiny")) == set()
