"""What the sections say: difficulty, the forecast's verdict, downloads, the paper's figures."""

import base64
import csv
import io
import json
from dataclasses import replace

import pytest

from components.report import paper
from components.report.page import render
from components.report.reading import collect
from components.report.results import ArmResults
from components.report.sections import as_cell, compared, difficulties, downloads, foretold
from tests.components.report.conftest import write_forecasts
from tests.components.report.test_page import Page

ARMS = ["grpo", "garl-q0.75", "garl-q1"]


def section(html: str, name: str) -> str:
    return " ".join(
        Page(html[html.index(f'<section id="{name}">') :].partition("</section>")[0] + "</section>").text.split()
    )


@pytest.mark.parametrize("start", ["cold", "warm"])
def test_the_papers_figures_stand_beside_ours(builder, start: str) -> None:
    results = collect(builder(ARMS, [0], task="finqa", start=start), ARMS, [0])
    text = section(render(results), "paper")
    assert "arXiv 2604.25907" in text
    theirs = {"cold": ["0.0%", "38.3%", "33.5%"], "warm": ["26.9%", "37.6%", "12.6%"]}[start]
    assert all(figure in text for figure in theirs)
    assert f"{100 * results.arms[1].figures.maj_at_k.value:.1f}%" in text
    compared = [item.label for _, item, _ in paper.beside_ours(results)]
    assert compared == ["GRPO", "GARL q=0.75"] + (["GARL q=1"] if start == "cold" else [])


def test_other_tasks_and_arms_are_not_the_papers(builder) -> None:
    arms = ["garl-debiased-q1", "paft-q0.75"]
    assert paper.beside_ours(collect(builder(arms, [0], task="finqa"), arms, [0])) == []


def test_no_paper_beside_a_task_of_ones_own(builder) -> None:
    assert 'id="paper"' not in render(collect(builder(ARMS, [0]), ARMS, [0]))


def test_accuracy_by_how_often_the_base_model_was_right(builder) -> None:
    build = builder(ARMS, [0, 1], examples=12)
    path = build / "probe/samples.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["correct"] = [number < 9 and place < number % 3 for place in range(4)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = collect(build, ARMS, [0, 1])
    found = difficulties(results)
    assert [(told, count) for told, count, _ in found] == [("never right", 6), ("up to 25%", 3), ("up to 50%", 3)]
    easy = {line["id"] for number, line in enumerate(lines) if number < 9 and number % 3 == 2}
    for figure, arm in zip(found[-1][2], results.ordered, strict=True):
        each = [sum(s.vote_correct for s in run.samples if s.id in easy) / len(easy) for run in arm.runs]
        assert figure == pytest.approx(sum(each) / 2)
    assert "up to 25%" in section(render(results), "problems")


def test_what_the_probe_named_is_held_against_the_end(builder) -> None:
    build = builder(ARMS, [0], examples=40)
    assert foretold(collect(build, ARMS, [0])) == ""
    write_forecasts(build / "probe", ARMS)
    assert foretold(collect(build, ARMS, [0])).startswith("It named GARL q=1, and no arm ends higher")
    write_forecasts(build / "probe", ARMS[:2])  # the best one was not looked at
    results = collect(build, ARMS, [0])
    best = results.arms[2].figures.maj_at_k.value
    assert f"It named GARL q=0.75, which ends at maj@4 {100 * results.arms[1].figures.maj_at_k.value:.1f}%" in foretold(
        results
    )
    assert f"the best arm is GARL q=1, {100 * best:.1f}%" in foretold(results)


def test_rollouts_stand_side_by_side_early_and_late(builder) -> None:
    results = collect(builder(ARMS, [0, 1]), ARMS, [0, 1])
    [(problem, arms)] = compared(results)
    assert (problem.prompt, problem.gold) == ("w:3210", "a:0123")
    assert [(one.early[0], one.late[0]) for one in arms] == [(2, 6)] * 3
    html = render(results)
    text = section(html, "rollouts")
    assert text.count("step 2, 0% right") == 3
    assert text.count("✗ wrong hm b=3210") == 6
    solved = [arm for arm in results.arms if arm.runs[0].shown[6][0].share > 0]
    assert text.count("✓ right sort them: 0123 a:0123") == len(solved) > 0
    assert 'id="rollouts"' not in render(replace(results, arms=[replace_shown(arm) for arm in results.arms]))


def replace_shown(arm: ArmResults) -> ArmResults:
    return replace(arm, runs=[replace(run, shown={}) for run in arm.runs])


def test_lineage_names_code_data_and_settings(builder) -> None:
    text = section(render(collect(builder(ARMS, [0]), ARMS, [0])), "runs")
    for told in ("c0ffee, with changes", "d4.dir", "ba5e.dir", "run0", "thaw-skills/3", "train.steps 6"):
        assert told in text


def test_tables_to_take_home_hold_every_figure(builder) -> None:
    results = collect(builder(ARMS, [0, 1], kinds=["warm", "=cold"]), ARMS, [0, 1])
    files = {file.name: base64.b64decode(file.link.partition(",")[2]).decode() for file in downloads(results, {})}
    rows, table = results.rows(), list(csv.DictReader(io.StringIO(files["results.csv"])))
    assert json.loads(files["results.json"]) == rows
    assert len(table) == len(rows)
    for row, line in zip(rows, table, strict=True):
        assert float(line["maj_at_4"]) == row["maj_at_4"]
        assert float(line["maj_at_4_interval_high"]) == row["maj_at_4_interval"][1]
        assert float(line["'=cold/p_at_1"]) == row["kinds"]["=cold"]["p_at_1"]


def test_no_text_becomes_a_formula() -> None:
    assert [as_cell(value) for value in ("=1+1", " @x", "GARL", -0.5)] == ["'=1+1", "' @x", "GARL", -0.5]
