"""`thaw compare`: the registered checkpoints side by side, from a real MLflow store."""

from pathlib import Path

import pytest

from components.errors import UserError
from components.tracking.runs import Tracker, connect
from tasks.registry import comparison_table


@pytest.fixture
def tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return connect(tmp_path)


def register(tracker: Tracker, metrics: dict[str, float], folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    tags = {"estimator": "garl", "q": "0.75", "task": "skills", "start": "cold", "seed": "0"}
    with tracker.run("an arm", parent=None, params={}, tags={}) as run:
        tracker.registry.register(folder, "thaw-skills", run_id=run.id, step=1, tags=tags, metrics=metrics)


def shown(tracker: Tracker, *references: str) -> list[list[str]]:
    """The table's columns, the heading first in each."""
    columns = comparison_table(tracker.registry, references).columns
    return [[str(column.header), *map(str, column.cells)] for column in columns]


def test_the_best_comes_first_and_held_out_figures_before_those_of_validation(tracker: Tracker, tmp_path: Path):
    figures = [
        {"validation/p_at_1": 0.9, "validation/maj_at_8": 0.9},
        {"test/p_at_1": 0.1, "test/maj_at_8": 0.2, "validation/maj_at_8": 0.9},
        {},
        {"test/p_at_1": 0.3, "test/maj_at_8": 0.4, "test/maj_at_8_low": 0.35, "test/maj_at_8_high": 0.45},
    ]
    for number, metrics in enumerate(figures):
        register(tracker, metrics, tmp_path / str(number))
    columns = {heading: cells for heading, *cells in shown(tracker)}
    assert list(columns) == ["model", "arm", "start", "seed", "step", "p@1", "p@8", "maj@8"]
    assert columns["model"] == [f"thaw-skills/{number}" for number in (4, 2, 1, 3)]
    assert columns["arm"] == ["garl-q0.75"] * 4
    assert columns["p@1"] == ["30.0", "10.0", "(90.0)", "-"]
    assert columns["maj@8"][0] == "40.0 [35, 45]"
    assert columns["maj@8"][2].startswith("(90.0 [")
    assert columns["p@8"] == ["-"] * 4
    assert shown(tracker, "thaw-skills/3")[0] == ["model", "thaw-skills/3"]


def test_an_empty_registry_says_how_it_is_filled(tracker: Tracker):
    with pytest.raises(UserError, match="the registry is empty; `thaw sweep` or `thaw train` fills it"):
        comparison_table(tracker.registry, [])
