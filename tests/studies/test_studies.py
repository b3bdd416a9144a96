"""Studies: what is kept fits its question, a table says what its rows say, and a wrong study is one sentence."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from components.config import load_settings
from components.errors import UserError
from studies.study import Study
from studies.tables import Table, best, forecasts, kinds_learned, learned, markdown, slopes
from tests.conftest import PROJECT

KEPT = sorted(file.parent for file in (PROJECT / "studies").glob("*/result.json"))


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


def test_studies_that_were_not_run_yet_are_said_to_be() -> None:
    text = (PROJECT / "studies/README.md").read_text(encoding="utf-8")
    for folder in (PROJECT / "studies").iterdir():
        if (folder / "study.yaml").is_file() and not (folder / "result.json").is_file():
            assert f"| {folder.name}, not run yet |" in text


def study(*sweeps: str, **others: object) -> Study:
    return Study.model_validate({"question": "why", "sweeps": [{"name": name} for name in sweeps]} | others)


def told(table: Table, arm: str, column: int = 0) -> dict[str, str]:
    [line] = [line for line in table.rows if line[column] == arm]
    return dict(zip(table.head, line, strict=True))


def seeds(arm: str, *majs: float, **others: Sequence[object]) -> list[dict[str, object]]:
    """A row for each seed; others: a value for each of them."""
    each = [{name: values[seed] for name, values in others.items()} for seed in range(len(majs))]
    return [row(arm, seed, maj, **each[seed]) for seed, maj in enumerate(majs)]


def test_a_table_shows_every_seed_and_medians() -> None:
    [table] = learned(study("one"), [row("base", None, 0.0), *seeds("garl-q1", 0.6, 1.0, 0.7)])
    assert told(table, "garl-q1") == {
        "arm": "garl-q1", "seed 0": "60", "seed 1": "100", "seed 2": "70", "median": "**70.0**", "p@1": "35.0",
        "warm": "70.0", "cold": "40.0", "kinds learned": "1 2 1",
    }  # fmt: skip
    assert list(told(table, "base").values())[:5] == ["base", "", "", "", "**0.0**"]


def test_a_race_is_counted_in_steps() -> None:
    rows = [row("base", None, 0.0, steps=None)]
    rows += [row("grpo", 0, 0.1, steps=50, stopped="beaten"), row("garl-q1", 0, 0.9, steps=200, stopped=None)]
    [table] = learned(study("one"), rows)
    assert told(table, "grpo")["steps"] == "50"
    assert "A race: 250 steps, where all arms to the end would have taken 400." in table.note


def test_the_best_constant_q_and_who_reaches_it() -> None:
    intervals = {"maj_at_4_interval": [[0.5, 0.7], [0.5, 0.75], [0.5, 0.8]]}
    rows = [row("base", None, 0.0), *seeds("garl-q0", 0.4, 0.4, 0.4), *seeds("garl-q1", 0.6, 0.9, 0.8)]
    rows += seeds("garl-qeach", 0.6, 0.6, 0.6, **intervals)
    rows += seeds("grpo", 0.9, 0.1, 0.1, recommended=[True] * 3, maj_at_4_interval=[[0, 0.2]] * 3)
    [table] = best(study("one"), rows)
    assert [line[1] for line in table.rows] == ["garl-q1", "garl-qeach", "grpo"]
    assert told(table, "garl-q1", 1)[""] == "best constant"
    assert told(table, "garl-qeach", 1)["maj@4"] == "60.0 [50.0, 75.0]"
    assert told(table, "garl-qeach", 1)["reaches it"] == "no"
    assert told(table, "grpo", 1)[""] == "the probe's"
    rows[-5]["maj_at_4_interval"] = [0.5, 0.9]  # two of three seeds reach 0.8 now
    [table] = best(study("one"), rows)
    assert told(table, "garl-qeach", 1)["reaches it"] == "yes"


def test_forecasts_stand_beside_outcomes_and_their_order_is_counted() -> None:
    def runs(arm: str, forecast: float | None, *steps: int | None) -> list[dict[str, object]]:
        count = len(steps)
        return seeds(arm, *[0.5] * count, escape_step=steps, forecast_step=[forecast] * count, steps=[100] * count)

    rows = [row("base", None, 0.0), *runs("garl-q1", 20.0, 40, 30, 50), *runs("garl-q0.75", 30.0, 10, None, 20)]
    rows += runs("grpo", None, None, None, 7) + runs("garl-q0", 500.0, 60, 50, 70)
    rows += runs("garl-q0.5", 90.0, None, None, None)
    [table] = forecasts(study("one"), rows)
    ratios = {line[1]: line[-1] for line in table.rows}
    assert ratios == {
        "garl-q1": "0.50", "garl-q0.75": "1.50", "grpo": "both never", "garl-q0": "missed", "garl-q0.5": "false alarm",
    }  # fmt: skip
    assert told(table, "garl-q0.75", 1)["each seed"] == "10 - 20"
    # q1 and q0.75 the wrong way round; each of them before q0 and q0.5; q0.5 before q0, which it was not.
    assert "one: 4 of 6 pairs of arms right" in table.note


def test_slopes_are_those_of_a_power_law() -> None:
    rows = [row("base", None, 0.0, q=None)]
    for q in (0.5, 1.0):
        for power in (3, 4, 5):
            steps = [30 * power] * 2 if q == 1 else [round(10 ** (0.5 * power)), None]
            for seed, step in enumerate(steps):
                # lower starts are steeper: P^(1 - q) times a length of grad log P that grows by 10^0.1 a decade
                length = 20 * 10 ** ((q - 1) * power + 0.1 * power)
                found = row("x", seed, 0.5, q=q, escape_step=step, set={"task.start": 10.0**-power})
                rows.append(found | {"grad_norm": length})
    [table] = slopes(study("one"), rows)
    half, one = table.rows
    assert half[1] == "0.001: 32 -; 0.0001: 100 -; 1e-05: 316 -"
    assert half[2:] == ["-0.50", "-0.70", "-0.5", "-0.52", ""]
    assert one[-1] == "1.000"


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
