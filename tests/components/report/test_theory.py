"""The page of the theory: the figures of the functions, complete, self-contained and safe."""

import math
import re
from pathlib import Path

import pytest

from components.objective import tsallis
from components.objective.flow import escape_course, fitting_time
from components.report.numbers import scientific
from components.report.theory import OUTPUTS, Theory, render, tables, title, told, work_out, write_page
from tests.components.objective.conftest import float64
from tests.components.report.test_page import Page

COMMITMENTS = [1.0, 0.0, 0.5, 0.75]


@pytest.fixture(scope="module")
def found() -> Theory:
    return work_out(1e-9, COMMITMENTS, 0.1, "from --p0")


def rows(html: str) -> list[list[list[str]]]:
    """The cells of each table's rows."""
    bodies = re.findall(r"<tbody>(.*?)</tbody>", html, re.DOTALL)
    split = [
        [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in body.split("</tr>")[:-1]] for body in bodies
    ]
    return [[[re.sub("<[^>]+>", "", cell) for cell in row] for row in body] for body in split]


def test_the_figures_are_those_of_the_theory(found: Theory) -> None:
    log_p0 = math.log(1e-9)
    assert [row.q for row in found.rows] == sorted(COMMITMENTS)
    for row in found.rows:
        q = row.q
        assert row.escape == tsallis.escape_time(log_p0, q).item()
        assert row.order == tsallis.escape_time_order(log_p0, q).item()
        assert row.ratio == row.escape / tsallis.escape_time(log_p0, 1.0).item()
        assert row.colder * row.escape == pytest.approx(tsallis.escape_time(math.log(1e-10), q).item())
        assert row.flow == escape_course(log_p0, q)[0][-1].item()
        assert row.shares == pytest.approx(tsallis.escort_minimiser(float64(*OUTPUTS), q).tolist(), abs=1e-6)
        assert row.level == tsallis.contamination_level(0.1, q)
        if q > 0:
            assert row.half == fitting_time(row.level / 2, 0.1, q)
            assert row.half_order == tsallis.contamination_time(row.level / 2, 0.1, q)
    assert found.rows[0].half == found.rows[0].half_order == math.inf
    assert 0 < max(row.gap for row in found.rows) < 1e-6


def test_the_page_shows_every_figure_in_its_place(found: Theory) -> None:
    escape, flow, escort, noise = rows(render(found))
    for number, row in enumerate(found.rows):
        q = f"{row.q:g}"
        assert escape[number] == [q, scientific(row.escape), scientific(row.order), f"{scientific(row.ratio)}×",
                                  f"{row.colder:.3g}×"]  # fmt: skip
        assert flow[number] == [q, scientific(row.flow, 6), scientific(row.escape, 6), scientific(row.gap)]
        assert escort[number] == [q, *(scientific(share, 3) for share in row.shares)]
        times = [scientific(row.half), scientific(row.half_order)] if row.q else ["never", "never"]
        assert noise[number] == [q, scientific(row.escape), scientific(row.level), *times]


def test_the_terminal_shows_what_the_page_shows(found: Theory) -> None:
    shown = [
        [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]
        for table in tables(found).values()
    ]
    assert shown == rows(render(found))


def test_the_words_name_the_slowest_and_the_fastest(found: Theory) -> None:
    assert title(found) == "From P = 1.0 × 10⁻⁹, q = 1 escapes 4.6 × 10⁷ times sooner than q = 0"
    sentences = told(found)
    assert "takes 1.11 times as long at q = 1 and 10 times as long at q = 0." in sentences["escape"]
    assert "q = 1 escapes after 22 and ends up saying the wrong label with probability 0.1;" in sentences["noise"]
    assert "q = 0 escapes after 1.0 × 10⁹ and ends up saying the wrong label with probability 0." in sentences["noise"]
    text = " ".join(Page(render(found)).text.split())
    assert all(sentence in text for sentence in sentences.values())
    alone = work_out(1e-4, [0.0, 0.0], 0.1, "from --p0")
    assert title(alone) == "From P = 1.0 × 10⁻⁴, q = 0 escapes after 1.0 × 10⁴ units of time"
    assert told(alone)["noise"].endswith("At such a q the wrong label is never fitted.")


def test_lines_carry_the_slopes_of_the_theory(found: Theory) -> None:
    text = Page(render(found)).text
    for slope in ("q=0, slope −1.00", "q=0.5, slope −0.50", "q=0.75, slope −0.25", "q=1, slope −0.04"):
        assert slope in text


def test_the_page_needs_nothing_else(found: Theory) -> None:
    html = render(found)
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("svg") == 4
    assert {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object"} == set()
    assert page.values("src") == []
    assert all(link.startswith("#") for link in page.values("href") + page.values("xlink:href"))
    assert not re.search(r"url\((?!#)|@import|https?://", html)


def test_references_inside_the_page_resolve_once(found: Theory) -> None:
    html = render(found)
    ids = Page(html).values("id")
    used = {link[1:] for link in Page(html).values("xlink:href")} | set(re.findall(r"url\(#([^)]+)\)", html))
    assert used <= set(ids)
    assert len(ids) == len(set(ids))
    assert all(f"{name}:" in html for name in set(re.findall(r"var\((--[a-z0-9-]+)\)", html)))
    assert "prefers-color-scheme: dark" in html


def test_what_it_is_given_is_escaped() -> None:
    evil = '<script>alert("x")</script> & $x_1$'
    html = render(work_out(1e-3, [0.5], 0.1, evil))
    assert "<script" not in html
    assert evil in Page(html).text


def test_equal_theories_give_equal_bytes(found: Theory, tmp_path: Path) -> None:
    write_page(tmp_path / "deep" / "theory.html", found)
    again = work_out(1e-9, COMMITMENTS, 0.1, "from --p0")
    assert (tmp_path / "deep" / "theory.html").read_text(encoding="utf-8") == render(again)


@pytest.mark.parametrize("p0", [1e-200, 0.4999])
def test_the_edges_can_be_drawn(p0: float) -> None:
    commitments = [number / 19 for number in range(20)]
    page = Page(render(work_out(p0, commitments, 0.499, "from --p0")))
    assert f"From P = {scientific(p0)}, q = 1 escapes" in page.text


def test_a_number_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="outside \\[0, 1\\]"):
        work_out(1e-3, [1.5], 0.1, "")
    with pytest.raises(ValueError, match="noise"):
        work_out(1e-3, [0.5], 0.5, "")
