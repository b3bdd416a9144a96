"""`thaw compare`: the registered checkpoints side by side, from a real MLflow store."""

import io
from pathlib import Path

import pytest
from rich.console import Console

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
    """The table's lines, heading first, as their cells."""
    console = Console(file=io.StringIO(), width=200)
    console.print(comparison_table(tracker.registry, references))
    lines = console.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]
    return [
        [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")]
        for line in lines
        if "│" in line or "┃" in line
    ]


def test_the_best_comes_first_and_held_out_figures_before_those_of_validation(tracker: Tracker, tmp_path: Path):
    figures = [
        {"validation/p_at_1": 0.9, "validation/maj_at_8": 0.9},
        {"test/p_at_1": 0.1, "test/maj_at_8": 0.2, "validation/maj_at_8": 0.9},
        {},
        {"test/p_at_1": 0.3, "test/maj_at_8": 0.4, "test/maj_at_8_low": 0.35, "test/maj_at_8_high": 0.45},
    ]
    for number, metrics in enumerate(figures):
        register(tracker, metrics, tmp_path / str(number))
    heading, *rows = shown(tracker)
    assert heading == ["model", "estimator", "q", "task", "seed", "step", "p@1", "p@8", "maj@8"]
    assert [row[0] for row in rows] == [f"thaw-skills/{number}" for number in (4, 2, 1, 3)]
    assert rows[0][-1] == "40.0% [35%, 45%]"
    assert rows[2][-1].startswith("(90.0%")
    assert rows[3][-3:] == ["-", "-", "-"]
    assert [row[0] for row in shown(tracker, "thaw-skills/3")[1:]] == ["thaw-skills/3"]


def test_an_empty_registry_says_how_it_is_filled(tracker: Tracker):
    with pytest.raises(UserError, match="the registry is empty; `thaw sweep` or `thaw train` fills it"):
        comparison_table(tracker.registry, [])
