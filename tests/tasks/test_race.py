"""What a race reads of its runs: their states while they pause, their records when they have ended."""

import json
from pathlib import Path

import pytest

from components.errors import UserError
from components.race import Standing
from tasks.race import validated


def test_validations_are_read_from_states_and_from_records(tmp_path: Path) -> None:
    at = {"50": {"right": [1, 0], "log_p": [-1.0, None]}, "100": {"right": [1, 1], "log_p": [-0.5, -3.0]}}
    for seed, file in enumerate(("state/step-100/state.json", "train.json")):
        (tmp_path / str(seed) / file).parent.mkdir(parents=True)
        (tmp_path / str(seed) / file).write_text(json.dumps({"validated": at}), encoding="utf-8")
    runs = [tmp_path / "0", tmp_path / "1"]
    first = Standing.of("a", [validated(run, 50) for run in runs], None)
    assert first.right.tolist() == [1, 0]
    assert first.log_p.tolist() == [-1, -float("inf")]
    assert first.gain is None
    second = Standing.of("a", [validated(run, 100) for run in runs], [validated(run, 50) for run in runs])
    assert second.maj == 1
    assert second.gain is not None
    assert second.gain.tolist() == [0.5, float("inf")]
    for run in runs:
        assert validated(run, 150) == at["100"]  # of a run that ended early
        with pytest.raises(UserError, match="was not validated by step 10"):
            validated(run, 10)
