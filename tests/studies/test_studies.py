"""Studies: what is kept fits its question, a table says what its rows say, and a wrong study is one sentence."""

import json
from pathlib import Path

import pytest

from components.config import load_settings
from components.errors import UserError
from studies.study import Study
from studies.tables import kinds_learned, markdown, sweep_table
from tests.conftest import PROJECT

KEPT = sorted(file.parent for file in (PROJECT / "studies").glob("*/study.yaml"))


def row(arm: str, seed: int | None, maj: float, **others: object) -> dict[str, object]:
    kinds = {kind: {"maj_at_4": value, "p_at_1": value / 2} for kind, value in (("warm", maj), ("cold", maj - 0.3))}
    row = {"sweep": "one", "arm": arm, "seed": seed, "maj_at_4": maj, "maj_at_4_interval": [0, 1], "p_at_1": maj / 2}
    return row | {"kinds": kinds, "escape_step": None, "forecast_step": None} | others


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_kept_results_are_those_of_the_question(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    study = Study.read(folder)
    rows = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    asked = set()
    for sweep in study.sweeps:
        settings = load_settings(PROJECT / "params.yaml", study.changes(sweep).overrides())
        asked |= {(sweep.name, arm, seed) for arm in settings.arm_names for seed in settings.seeds}
        asked.add((sweep.name, "base", None))
    assert {(item["sweep"], item["arm"], item["seed"]) for item in rows} == asked
    assert len(rows) == len(asked)
    assert all(item["steps"] > 0 and item["seconds"] > 0 for item in rows if item["arm"] != "base")
    assert markdown(study, rows) in (folder / "table.md").read_text(encoding="utf-8")
    assert f"({folder.name}/table.md)" in (PROJECT / "studies/README.md").read_text(encoding="utf-8")


def test_a_table_shows_every_seed_and_medians() -> None:
    rows = [row("base", None, 0.0), *(row("garl-q1", seed, maj) for seed, maj in enumerate((0.6, 1.0, 0.7)))]
    rows[1]["escape_step"], rows[3]["escape_step"] = 20, 30
    for item in rows[1:]:
        item["forecast_step"] = 21.6
    head, _, base, arm, *_ = (line.strip("| ").split(" | ") for line in sweep_table(rows).splitlines())
    told = dict(zip(head, arm, strict=True))
    assert told == {
        "arm": "garl-q1", "seed 0": "60", "seed 1": "100", "seed 2": "70", "median": "**70.0**", "p@1": "35.0",
        "warm": "70.0", "cold": "40.0", "kinds learned": "1 2 1", "half at P = 0.1": "20 - 30", "forecast": "22",
    }  # fmt: skip
    assert base[:5] == ["base", "", "", "", "**0.0**"]


def test_columns_that_no_row_fills_are_left_out() -> None:
    text = sweep_table([row("base", None, 0.0), row("garl-q1", 0, 0.6)])
    assert "forecast" not in text
    assert "0.1" not in text


@pytest.mark.parametrize(("maj", "kinds"), [(0.49, 0), (0.5, 1), (0.8, 2)])
def test_a_kind_is_learned_from_half_of_its_problems_on(maj: float, kinds: int) -> None:
    assert kinds_learned(row("garl-q1", 0, maj)) == kinds


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("question: why\nsweeps: []\n", "sweeps"),
        ("question: why\nsweeps: [{name: a, set: {train.step: 3}}]\n", "step"),
        ("question: why\nsweeps: [{name: A B}]\n", "name"),
        ("question: [\n", "study.yaml"),
    ],
)
def test_a_wrong_study_is_one_sentence(text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(UserError, match=told) as error:
        Study.read(tmp_path)
    assert "\n" not in str(error.value)


def test_a_study_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*study.yaml"):
        Study.read(tmp_path / "nothing")
