"""A build folder read back whole, or one sentence that names what is missing and how to get it."""

import json
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from rich.console import Console

from components.config import Arm
from components.errors import UserError
from components.evaluation.compare import compare
from components.evaluation.metrics import Estimate
from components.report.page import render
from components.report.reading import collect, read_samples
from components.report.results import ArmResults, Figures, Results
from components.report.tables import comparison_table, results_table

ARMS = ["paft-q0.75", "grpo", "garl-q1"]


@pytest.fixture
def build(builder) -> Path:
    return builder(ARMS, [0, 1, 2])


@pytest.fixture
def results(build: Path) -> Results:
    return collect(build, ARMS, [0, 1, 2])


def shown(table) -> str:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_collect_reads_what_the_steps_wrote(results: Results, build: Path) -> None:
    assert (results.task, results.start, results.split, results.k, results.examples) == (
        "skills",
        "cold",
        "test",
        4,
        12,
    )
    assert [arm.name for arm in results.arms] == ARMS
    assert [arm.label for arm in results.ordered] == ["GRPO", "PAFT q=0.75", "GARL q=1"]
    record = json.loads((build / "evaluate" / "garl-q1" / "2" / "evaluation.json").read_text())["figures"]
    run = results.arms[2].runs[2]
    assert run.figures.maj_at_k == Estimate(record["maj_at_4"], record["maj_at_4_low"], record["maj_at_4_high"])
    assert run.checkpoint == "build/train/garl-q1/2/final"
    assert np.isneginf(results.probe.log_p).sum() == 1
    assert results.base.maj_at_k.value == 0


def test_finqas_figure_by_value_is_reported_where_there_is_one(results: Results, build: Path) -> None:
    assert "value_at_1" not in results.rows()[0]
    assert "value@1" not in render(results)
    for path in [*build.glob("evaluate/*/*/evaluation.json"), build / "probe/probe.json"]:
        record = json.loads(path.read_text())
        figures = record["base" if "base" in record else "figures"]
        figures |= {"value_at_1": 0.25, "value_at_1_low": 0.125, "value_at_1_high": 0.5}
        path.write_text(json.dumps(record))
    found = collect(build, ARMS, [0, 1, 2])
    assert found.arms[0].figures.value_at_1 == Estimate(0.25, 0.125, 0.5)
    assert {row["value_at_1"] for row in found.rows()} == {0.25}
    assert "value@1" in render(found)


def test_curves_keep_gaps_and_missing_columns(results: Results) -> None:
    grpo, garl = results.arms[1].runs[0].curves, results.arms[2].runs[0].curves
    assert np.isfinite(garl["validation/maj_at_4"]).tolist() == [False, True] * 3
    assert "train/effective_reward" in garl
    assert "train/effective_reward" not in grpo


def test_median_over_seeds() -> None:
    def figures(value: float) -> Figures:
        return Figures(*[Estimate(value, value - 0.1, value + 0.2)] * 4)

    odd = Figures.median([figures(0.9), figures(0.2), figures(0.3)])
    assert odd == figures(0.3)
    even = Figures.median([figures(0.2), figures(0.4)])
    assert even.p_at_1.value == pytest.approx(0.3)


def test_rows(results: Results) -> None:
    rows = results.rows()
    assert len(rows) == 1 + 3 * 3
    base, run = rows[0], rows[-1]
    assert (base["method"], base["q"], base["seed"], base["checkpoint"]) == ("base", None, None, None)
    assert base.keys() == run.keys()
    assert list(run)[:7] == ["task", "start", "arm", "method", "q", "seed", "split"]
    assert (run["method"], run["q"], run["seed"], run["model_version"]) == ("garl", 1.0, 2, "3")
    low, high = run["maj_at_4_interval"]
    assert low <= run["maj_at_4"] <= high


@pytest.mark.parametrize(
    ("lost", "cure"),
    [
        ("probe/probe.json", "thaw probe"),
        ("train/grpo/1/train.json", "`thaw train` for arm grpo, seed 1"),
        ("train/grpo/1/curves.csv", "`thaw train` for arm grpo, seed 1"),
        ("evaluate/grpo/1/evaluation.json", "`thaw evaluate` for arm grpo, seed 1"),
        ("evaluate/grpo/1/samples.jsonl", "`thaw evaluate` for arm grpo, seed 1"),
    ],
)
@pytest.mark.parametrize("damage", ["removed", "", "{", '{"id": 1}\n', "step\nx\n"])
def test_a_file_is_missing_or_damaged(build: Path, lost: str, cure: str, damage: str) -> None:
    path = build / lost
    path.unlink() if damage == "removed" else path.write_text(damage)
    with pytest.raises(UserError) as error:
        collect(build, ARMS, [0, 1, 2])
    assert str(path) in str(error.value)
    assert cure in str(error.value)
    assert "\n" not in str(error.value)


def test_the_base_model_was_sampled_another_number_of_times(build: Path) -> None:
    path = build / "probe" / "probe.json"
    path.write_text(path.read_text().replace("_at_4", "_at_8"))
    with pytest.raises(UserError, match="'p_at_4'"):
        collect(build, ARMS, [0])


def test_evaluations_that_cannot_share_a_page(build: Path) -> None:
    path = build / "evaluate" / "garl-q1" / "0" / "evaluation.json"
    path.write_text(path.read_text().replace('"cold"', '"warm"'))
    with pytest.raises(UserError, match=r"arm paft-q0\.75, seed 0 and arm garl-q1, seed 0 .* different start "):
        collect(build, ARMS, [0])


def test_evaluations_of_other_examples(build: Path) -> None:
    path = build / "evaluate" / "garl-q1" / "0" / "samples.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match="different examples"):
        collect(build, ARMS, [0])


def test_the_base_models_samples_are_optional(build: Path) -> None:
    assert len(collect(build, ARMS, [0]).base_samples) == 12
    (build / "probe" / "samples.jsonl").unlink()
    assert collect(build, ARMS, [0]).base_samples == []


@pytest.mark.parametrize(
    ("arm", "label"),
    [
        ("grpo", "GRPO"),
        ("dr-grpo", "Dr. GRPO"),
        ("rloo", "RLOO"),
        ("maxrl", "MaxRL"),
        ("star", "STaR"),
        ("garl-q0", "GARL q=0"),
        ("garl-q1.0", "GARL q=1"),
        ("garl-plugin-q1", "plug-in GARL q=1"),
        ("garl-debiased-q0.25", "debiased GARL q=0.25"),
        ("garl-score-q0.75", "score-only GARL q=0.75"),
        ("garl-paft-q0.75", "GARL→PAFT q=0.75"),
        ("garl-q1to0", "GARL q=1to0"),
        ("garl-q1to0-cosine", "GARL q=1to0-cosine"),
        ("garl-q1to0-at0.5", "GARL q=1to0-at0.5"),
        ("paft-qadaptive", "PAFT q=adaptive"),
        ("garl-qeach", "GARL q=each"),
    ],
)
def test_labels_say_the_method_and_its_commitment(arm: str, label: str) -> None:
    assert ArmResults(arm, Arm.parse(arm), []).label == label


def test_arms_come_by_commitment_those_without_first_and_those_that_move_last(builder) -> None:
    arms = ["garl-qadaptive", "garl-q1", "rloo", "paft-q0.25", "garl-q1to0", "garl-paft-q1", "garl-q0.25", "grpo"]
    found = collect(builder(arms, [0]), arms, [0])
    assert [item.name for item in found.ordered] == [
        "grpo", "rloo", "garl-q0.25", "paft-q0.25", "garl-q1", "garl-paft-q1", "garl-q1to0", "garl-qadaptive",
    ]  # fmt: skip
    recorded = {row["arm"]: row["q"] for row in found.rows()}
    assert recorded == {
        "base": None, "garl-qadaptive": "adaptive", "garl-q1": 1, "rloo": None, "paft-q0.25": 0.25,
        "garl-q1to0": "1to0", "garl-paft-q1": 1, "garl-q0.25": 0.25, "grpo": None,
    }  # fmt: skip


def test_results_table_fits_and_shows_every_seed(results: Results) -> None:
    text = shown(results_table(results))
    assert max(map(len, text.splitlines())) <= 100
    row = next(line for line in text.splitlines() if line.startswith("GARL q=1"))
    each = [100 * run.figures.maj_at_k.value for run in results.arms[2].runs]
    assert row.split()[-3:] == [f"{value:.0f}" for value in each]
    assert f"{median(each):.1f} [" in row
    assert "escaped" in row


def test_eight_arms_and_five_seeds_fit(builder) -> None:
    arms = ["grpo", *(f"garl-q{q}" for q in (0, 0.25, 0.5, 0.75, 1)), "garl-debiased-q0.25", "paft-q0.75"]
    table = shown(results_table(collect(builder(arms, list(range(5)), k=16), arms, list(range(5)))))
    assert max(map(len, table.splitlines())) <= 100
    rows = [line for line in table.splitlines() if "[" in line]
    assert len(rows) == 9


KINDS = ["thawed", "frozen", "colder"]


def test_kinds_of_problems_have_figures_of_their_own(builder) -> None:
    found = collect(builder(ARMS, [0, 1], kinds=KINDS), ARMS, [0, 1])
    assert found.kinds == KINDS  # the warmest first, as the probe has it
    rows = found.rows()
    assert all(list(row["kinds"]) == KINDS for row in rows)
    for item, row in zip(found.arms[2].runs, rows[-2:], strict=True):
        members = [sample for sample in item.samples if sample.kind == "frozen"]
        assert len(members) == 4
        figures = row["kinds"]["frozen"]
        assert figures["maj_at_4"] == sum(sample.vote_correct for sample in members) / 4
        assert figures["p_at_1"] == sum(sample.accuracy for sample in members) / 4
        assert figures["p_at_4"] == sum(any(sample.correct) for sample in members) / 4
    each = [row["kinds"]["colder"]["maj_at_4"] for row in rows[-2:]]
    assert found.kinds_of(found.arms[2])["colder"].maj_at_k == median(each)


def test_the_table_of_kinds_fits(builder) -> None:
    arms = ["grpo", *(f"garl-q{q}" for q in (0, 0.25, 0.5, 0.75, 1)), "garl-debiased-q0.25", "paft-q0.75"]
    kinds = ["sort", "reverse", "rotate", "increment"]
    found = collect(builder(arms, list(range(5)), k=16, kinds=kinds), arms, list(range(5)))
    lines = shown(results_table(found)).splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if line.startswith("GARL q=1"))
    wanted = [found.kinds_of(found.arms[5])[kind].maj_at_k for kind in kinds]
    assert row.split()[-4:] == [f"{100 * value:.0f}" for value in wanted]


def test_results_without_kinds_say_nothing_of_them(results: Results) -> None:
    assert results.kinds == []
    assert not any("kinds" in row for row in results.rows())


def test_comparison_table(results: Results, build: Path) -> None:
    samples = {arm: read_samples(build / "evaluate" / arm / "0" / "samples.jsonl") for arm in ("grpo", "garl-q1")}
    from components.config import EvaluationSettings

    settings = EvaluationSettings(samples=4, bootstrap=200, seed=0)
    comparison = compare(samples["grpo"], samples["garl-q1"], settings)
    text = shown(comparison_table(comparison, "grpo", "models:/[x]/1"))
    assert "models:/[x]/1" in text
    assert f"{100 * results.arms[2].runs[0].figures.p_at_1.value:+.1f} [" in text
    assert "maj@4" in text
