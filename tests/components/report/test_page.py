"""The page: valid, complete, self-contained, safe against what models say, and the same bytes for the same figures."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from components.evaluation.metrics import Estimate
from components.forecast import advice
from components.report.comparison import Row, write_page
from components.report.numbers import scientific
from components.report.page import write_report
from components.report.reading import collect
from components.report.results import Results
from components.report.sections import answers, escapes
from tests.components.report.conftest import write_forecasts

ARMS = ["grpo", "garl-q0", "garl-q0.75", "garl-q1", "garl-debiased-q1", "paft-q0.75"]
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """The text, the tags and the attributes of a page; refuses tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += data + " "

    def values(self, name: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(name)) is not None]


def report(build: Path, arms: list[str], seeds: list[int]) -> tuple[str, Results]:
    out = build / "report"
    results = write_report(build, arms, seeds, out)
    return (out / "index.html").read_text(encoding="utf-8"), results


def test_every_arm_and_seed_is_there(builder) -> None:
    html, results = report(builder(ARMS, [0, 1]), ARMS, [0, 1])
    page = Page(html)
    for arm in results.arms:
        assert page.text.count(arm.label) > 5
        for run in arm.runs:
            assert f"{100 * run.figures.p_at_1.value:.1f}%" in page.text
    assert page.text.count("Groups without a gradient") == 2  # over the chart, and behind it its values
    assert "4 of 6 arms escaped the cold start" in " ".join(page.text.split())
    assert [tag for tag, _ in page.tags].count("svg") == 8 + len(ARMS)


def test_kinds_of_problems_have_a_table_and_curves(builder) -> None:
    kinds = ["thawed", "<frozen>"]
    html, results = report(builder(ARMS, [0, 1], kinds=kinds), ARMS, [0, 1])
    page = Page(html)
    assert "<frozen>" in page.text
    for kind in kinds:
        for name in ("p_estimate", "maj_at_4"):
            assert f"kinds/{kind}/{name} over steps, a line an arm" in page.values("aria-label")
    table = page.text.partition("on each kind of problem")[2]
    for figures in map(results.kinds_of, results.arms):
        assert f"{100 * figures['<frozen>'].maj_at_k:.1f}%" in table


def test_results_json(builder) -> None:
    build = builder(ARMS, [0])
    _, results = report(build, ARMS, [0])
    assert json.loads((build / "report" / "results.json").read_text()) == results.rows()


def test_nothing_is_fetched(builder) -> None:
    html, _ = report(builder(["garl-q1"], [0]), ["garl-q1"], [0])
    page = Page(html)
    assert {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object"} == set()
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{}]  # the page's own
    assert page.values("src") == []
    links = page.values("href") + page.values("xlink:href")
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"url\((?!#)|@import|https?://", html)


def test_references_inside_the_page_resolve_once(builder) -> None:
    html, _ = report(builder(ARMS, [0]), ARMS, [0])
    page = Page(html)
    ids = page.values("id")
    used = {link[1:] for link in page.values("xlink:href")} | set(re.findall(r"url\(#([^)]+)\)", html))
    assert used <= set(ids)
    assert len(ids) == len(set(ids))
    variables = set(re.findall(r"var\((--[a-z0-9-]+)\)", html))
    assert all(f"{name}:" in html for name in variables)


def test_what_models_say_is_escaped(builder) -> None:
    build = builder(["garl-q1", "grpo"], [0])
    path = build / "evaluate" / "grpo" / "0" / "samples.jsonl"
    evil = '<script>alert("x")</script> & "quotes" $x_1$'
    lines = [json.loads(line) | {"vote": evil} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    html, _ = report(build, ["garl-q1", "grpo"], [0])
    page = Page(html)
    assert html.count("<script") == 1  # the page's own
    assert evil in page.text
    assert evil in page.values("title")


EVIL = """<script>alert(1)</script></style></svg><img src=x onerror=alert(1)>" onmouseover='alert(1)' {{ 7*7 }} $x_1$"""


def shape(page: Page) -> list[tuple[str, tuple[str, ...]]]:
    """The tags of a page with the names of their attributes."""
    return [(tag, tuple(attributes)) for tag, attributes in page.tags]


def test_no_text_of_others_becomes_a_part_of_the_page(builder) -> None:
    arms = ["garl-q1", "grpo"]
    build = builder(arms, [0], kinds=["plain", "simple"])
    harmless = Page(report(build, arms, [0])[0])

    changes = dict.fromkeys(("task", "start", "split", "checkpoint", "model_name", "stopped", "commit"), EVIL)
    for path in [*build.rglob("evaluation.json"), *build.rglob("train.json")]:
        record = json.loads(path.read_text())
        for shown in (item for items in record.get("shown", {}).values() for item in items):
            shown |= {"id": EVIL, "prompt": EVIL, "gold": EVIL, "wrong": [EVIL, EVIL]}
        path.write_text(json.dumps(record | {name: EVIL for name in changes if name in record}))
    for path in build.rglob("samples.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines = [line | {"id": f"{EVIL} {line['id']}", "vote": EVIL, "answers": [EVIL] * 4} for line in lines]
        path.write_text("".join(json.dumps(line).replace('"plain"', json.dumps(EVIL)) + "\n" for line in lines))
    probe = json.loads((build / "probe" / "probe.json").read_text())
    probe["kinds"] = {EVIL if kind == "plain" else kind: found for kind, found in probe["kinds"].items()}
    (build / "probe" / "probe.json").write_text(json.dumps(probe))
    for path in build.rglob("curves.csv"):
        heading, steps = path.read_text().split("\n", 1)
        quoted = EVIL.replace('"', '""')
        names = [f'"{name.replace("plain", quoted)}"' for name in heading.split(",")]
        path.write_text(f"{','.join(names)}\n{steps}")

    page = Page(report(build, arms, [0])[0])
    assert shape(page) == shape(harmless)
    assert page.text.count("<script>alert(1)</script>") > 10
    assert EVIL in page.values("title")


def test_no_name_of_a_version_becomes_a_part_of_the_comparison(tmp_path: Path) -> None:
    def compared(name: str) -> Page:
        figures = {"maj@4": Estimate(0.5, 0.4, 0.6)}
        rows = [Row(f"{name}/1", name, name, 3, figures), Row(f"{name}/2", name, name, 3, figures)]
        write_page(tmp_path / "page.html", name, rows, ["maj@4"], name, {})
        return Page((tmp_path / "page.html").read_text(encoding="utf-8"))

    page = compared(EVIL)
    assert shape(page) == shape(compared("plain"))
    assert f"Registered versions on “{EVIL}”" in page.text


def test_equal_results_give_equal_bytes(builder) -> None:
    build = builder(ARMS[:3], [0, 1])
    first, _ = report(build, ARMS[:3], [0, 1])
    second, _ = report(build, ARMS[:3], [0, 1])
    assert first == second


def test_nothing_escaped(builder) -> None:
    build = builder(["grpo", "garl-q1"], [0], task="finqa", escaping=False, k=8, steps=3, p0=1e-14)
    html, _ = report(build, ["grpo", "garl-q1"], [0])
    text = " ".join(Page(html).text.split())
    assert "No arm escaped the cold start on finqa" in text
    assert "no problem is solved by majority" in text
    assert "maj@8" in text
    assert "maj@16" not in text.partition("Beside the paper")[0]


def test_one_arm_without_an_effective_reward(builder) -> None:
    html, _ = report(builder(["grpo"], [0]), ["grpo"], [0])
    page = Page(html)
    assert "Effective reward" not in page.text
    assert "of each seed" not in page.text


def test_one_sample_and_one_step(builder) -> None:
    html, _ = report(builder(["paft-q0.75"], [3], k=1, steps=1, examples=2), ["paft-q0.75"], [3])
    assert "maj@1" in Page(html).text


def test_a_base_model_without_any_chance(builder) -> None:
    build = builder(["garl-q1"], [0])
    path = build / "probe" / "probe.json"
    record = json.loads(path.read_text())
    record |= {"log_p": [None, None], "p0": record["p0"] | {"mean": 0.0, "median": 0.0}}
    path.write_text(json.dumps(record))
    html, _ = report(build, ["garl-q1"], [0])
    assert "no finite time" in " ".join(Page(html).text.split())


def test_theory_follows_the_median_problem(builder) -> None:
    results = collect(builder(["garl-q0.9"], [0]), ["garl-q0.9"], [0])
    found = escapes(results)
    assert [item.q for item in found] == [0, 0.25, 0.5, 0.75, 0.9, 1]
    middle = np.sort(results.probe.log_p)[(len(results.probe.log_p) - 1) // 2]
    assert found[0].time == pytest.approx(math.exp(-middle))
    assert found[-1].time == pytest.approx(-middle)
    assert found[-1].ratio == 1


def test_answers_run_from_easy_to_hard(builder) -> None:
    results = collect(builder(ARMS, [0]), ARMS, [0])
    shown = answers(results)
    totals = [sum(answer.right for answer in said) for _, said in shown]
    assert len(shown) == 6
    assert totals == sorted(totals, reverse=True)
    assert [answer.who for answer in shown[0][1]] == ["base model", *(arm.label for arm in results.ordered)]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0123, "0.012"), (3.14e-7, "3.1 × 10⁻⁷"), (1950.4, "1,950"), (4.1e4, "4.1 × 10⁴"), (13.7, "14"),
     (math.inf, "over 10³⁰⁸"), (99.97, "100")],
)  # fmt: skip
def test_scientific(value: float, text: str) -> None:
    assert scientific(value) == text


def test_the_forecasts_stand_beside_what_happened(builder) -> None:
    build = builder(ARMS, [0, 1])
    assert "What the probe forecast" not in report(build, ARMS, [0, 1])[0]
    forecasts = {item.arm: item for item in write_forecasts(build / "probe", ARMS)}
    html, results = report(build, ARMS, [0, 1])
    section = html[html.index("What the probe forecast") :].partition("</section>")[0]
    assert advice(list(forecasts.values())) in section
    rows = re.findall(r'<tr><th scope="row">.*?</tr>', section, re.DOTALL)
    for happened, steps, arm in zip(rows[: len(ARMS)], rows[len(ARMS) :], results.ordered, strict=True):
        item = forecasts[arm.name]
        assert arm.label in happened
        assert f"{item.gain.value:+.1f}" in steps
        _, forecast, training, share, maj = happened.split("<td>")
        assert ("never" if item.escape_step is None else f"step {item.escape_step:.0f}") in forecast
        for run in arm.runs:
            assert ("never" if run.escape_step is None else str(run.escape_step)) in training
        assert f"{100 * item.escaped:.1f}%" in share
        assert f"{100 * arm.figures.maj_at_k.value:.1f}%" in maj
    assert any(run.escape_step is not None for arm in results.arms for run in arm.runs)
    Page(html)
