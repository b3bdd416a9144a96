"""The report as its readers have it: in a browser, by keyboard, on a phone, in the dark."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.evaluation.metrics import Estimate
from components.report.comparison import Row
from components.report.comparison import write_page as write_comparison
from components.report.gallery import write_gallery
from components.report.page import write_report
from components.report.theory import work_out
from components.report.theory import write_page as write_theory
from studies.page import write_page as write_studies
from tests.browser import Reader, started
from tests.components.report.conftest import write_build, write_forecasts
from tests.conftest import PROJECT

ARMS, SEEDS = ["grpo", "garl-q0.75", "garl-q1", "paft-q0.75"], [0, 1]
EVIL = """<script>window.ran = 1</script><img src=x onerror="window.ran = 1"><svg onload='window.ran = 1'>"""
SCREENSHOTS = PROJECT / "build/screenshots"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with started() as browser:
        yield browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = write_build(
        tmp_path_factory.mktemp("page") / "build", ARMS, SEEDS, k=16, examples=40, steps=60, kinds=["warm", "cold"]
    )
    write_forecasts(build / "probe", ARMS)
    write_report(build, ARMS, SEEDS, build / "report")
    return build / "report"


@pytest.fixture
def address(report: Path) -> str:
    return (report / "index.html").as_uri()


def test_the_numbers_are_those_of_results_json_and_nothing_is_fetched(browser, report: Path, address: str) -> None:
    rows = json.loads((report / "results.json").read_text(encoding="utf-8"))
    with Reader(browser, address) as reader:
        shown = reader.page.locator("#runs table").first.locator("tbody tr").all_inner_texts()
        trained = [row for row in rows if row["arm"] != "base"]
        assert len(shown) == len(trained) == len(ARMS) * len(SEEDS)
        for row in trained:
            figures = [f"{100 * row[name]:.1f}%" for name in ("maj_at_16", "p_at_1", "p_at_16")]
            assert any(all(figure in line for figure in figures) and f"\t{row['seed']}\t" in line for line in shown)
        base = reader.page.locator("#figures tbody tr").first.inner_text()
        assert f"{100 * rows[0]['maj_at_16']:.1f}%" in base
        assert reader.said == []
        assert reader.fetched == []


def test_the_page_hands_its_numbers_out(browser, report: Path, address: str, tmp_path: Path) -> None:
    with Reader(browser, address) as reader:
        for link in reader.page.locator("a[download]").all():
            with reader.page.expect_download() as download:
                link.click()
            download.value.save_as(tmp_path / download.value.suggested_filename)
    assert (tmp_path / "results.json").read_text() == (report / "results.json").read_text()
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert len(lines) == 1 + len(json.loads((report / "results.json").read_text()))
    assert "maj_at_16_interval_low" in lines[0]
    assert "p,step 60,GARL q=1," in (tmp_path / "charts.csv").read_text()


def test_a_chart_tells_its_values_under_the_pointer_and_by_keys(browser, address: str) -> None:
    with Reader(browser, address) as reader:
        chart = reader.page.locator("#training .chart").first
        plot, readout = chart.locator(".plot"), chart.locator(".readout")
        rows = chart.locator("tbody tr")
        assert not readout.is_visible()

        plot.scroll_into_view_if_needed()
        frame, last = plot.bounding_box(), rows.last
        assert frame is not None
        reader.page.mouse.move(frame["x"] + frame["width"] * float(last.get_attribute("data-at") or 0), frame["y"] + 60)
        assert readout.is_visible()
        assert readout.locator("b").text_content() == "step 60"
        assert readout.locator(".value").all_text_contents() == last.locator("td").all_text_contents()
        reader.page.mouse.move(0, 0)
        assert not readout.is_visible()

        plot.focus()
        reader.page.keyboard.press("Home")
        assert readout.locator("b").text_content() == "step 1"
        reader.page.keyboard.press("ArrowRight")
        second = rows.nth(1).locator("td").all_text_contents()
        assert readout.locator(".value").all_text_contents() == [cell for cell in second if cell]
        assert "GARL q=1" in (plot.get_attribute("aria-valuetext") or "")
        reader.page.keyboard.press("Escape")
        assert not readout.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_rule_of_accessibility_is_broken(browser, address: str, scheme: str) -> None:
    with Reader(browser, address, color_scheme=scheme) as reader:
        reader.page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert reader.violations() == []


@pytest.fixture(scope="module")
def others(report: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The project's other pages."""
    folder, figures = tmp_path_factory.mktemp("others"), {"maj@4": Estimate(0.5, 0.4, 0.6)}
    write_gallery({"project": report, "experiments/again": report}, folder / "gallery")
    write_theory(folder / "theory.html", work_out(1e-6, [0, 0.5, 1], 0.1, "from --p0"))
    rows = [Row(f"thaw/{number}", "garl-q1", "0", 3, figures) for number in (1, 2)]
    write_comparison(folder / "comparison.html", "test", rows, ["maj@4"], "thaw/1", {})
    write_studies(sorted(file.parent for file in (PROJECT / "studies").glob("*/study.yaml")), folder / "studies.html")
    pages = {name: folder / f"{name}.html" for name in ("theory", "comparison", "studies")}
    return pages | {"gallery": folder / "gallery/index.html"}


@pytest.mark.parametrize("name", ["gallery", "theory", "comparison", "studies"])
def test_the_other_pages_are_as_well_behaved(browser, others: dict[str, Path], name: str) -> None:
    with Reader(browser, others[name].as_uri(), viewport={"width": 360, "height": 740}) as reader:
        assert reader.violations() == []
        assert reader.page.evaluate("document.documentElement.scrollWidth") == 360
        assert reader.said == []
        assert reader.fetched == []


@pytest.mark.parametrize(
    ("name", "options"),
    {
        "desktop": {"viewport": {"width": 1280, "height": 900}},
        "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
        "phone": {"viewport": {"width": 360, "height": 740}, "has_touch": True},
    }.items(),
)
def test_it_fits_every_screen(browser, address: str, name: str, options: dict) -> None:
    with Reader(browser, address, **options) as reader:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        reader.page.screenshot(path=SCREENSHOTS / f"report-{name}.png", full_page=True)
        wide = reader.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide == 0
        paper = reader.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 150) == (name == "dark")


def test_the_keyboard_reaches_all_that_reacts_and_focus_is_seen(browser, address: str) -> None:
    reacts = "a[href], summary, .plot[tabindex], .scroll[tabindex], pre[tabindex]"
    with Reader(browser, address) as reader:
        visible = f"[...document.querySelectorAll('{reacts}')].filter((one) => one.checkVisibility())"
        wanted = reader.page.evaluate(f"{visible}.length")
        outlines: dict[int, str] = {}
        for _ in range(wanted + 5):
            reader.page.keyboard.press("Tab")
            place, outline = reader.page.evaluate(
                f"[{visible}.indexOf(document.activeElement), getComputedStyle(document.activeElement).outline]"
            )
            outlines[place] = outline
        assert wanted > 30
        assert outlines.keys() - {-1} == set(range(wanted))  # -1: behind the last one
        assert all("solid 2px" in outline for place, outline in outlines.items() if place >= 0)


def test_what_others_wrote_is_text_and_runs_nothing(browser, tmp_path: Path) -> None:
    arms = ["garl-q1", "grpo"]
    build = write_build(tmp_path / "build", arms, [0], kinds=["plain", "simple"])
    for path in build.rglob("samples.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines = [line | {"id": f"{EVIL} {line['id']}", "vote": EVIL} for line in lines]
        path.write_text("".join(json.dumps(line).replace('"plain"', json.dumps(EVIL)) + "\n" for line in lines))
    for path in [*build.rglob("evaluation.json"), *build.rglob("train.json")]:
        record = json.loads(path.read_text())
        record |= {name: EVIL for name in ("task", "model_name", "commit") if name in record}
        for shown in (item for items in record.get("shown", {}).values() for item in items):
            shown |= {"prompt": EVIL, "gold": EVIL, "wrong": [EVIL, EVIL]}
        path.write_text(json.dumps(record))
    write_report(build, arms, [0], build / "report")
    with Reader(browser, (build / "report/index.html").as_uri()) as reader:
        assert (reader.page.locator("#answers h3").first.text_content() or "").startswith(EVIL[:40])
        assert EVIL in (reader.page.locator("h1").text_content() or "")
        assert EVIL in (reader.page.locator("#rollouts .said small").first.text_content() or "")
        assert EVIL in (reader.page.locator("#runs .lineage code").first.text_content() or "")
        for plot in reader.page.locator(".plot").all():
            plot.focus()
            reader.page.keyboard.press("Home")
        assert reader.page.evaluate("window.ran") is None
        assert reader.said == []
        assert reader.fetched == []


def test_the_page_forbids_what_it_does_not_need(browser, report: Path, tmp_path: Path) -> None:
    """Were a text of others ever taken for code, the page's own policy would not run it."""
    html = (report / "index.html").read_text(encoding="utf-8")
    (tmp_path / "index.html").write_text(html.replace("</h1>", f"{EVIL}</h1>", 1), encoding="utf-8")
    with Reader(browser, (tmp_path / "index.html").as_uri()) as reader:
        assert reader.page.evaluate("window.ran") is None
        assert any("Content Security Policy" in said for said in reader.said)
