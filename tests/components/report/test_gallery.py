"""The gallery: every sweep with its best arm, and all that it leads to beside it."""

import json
from pathlib import Path

import pytest

from components.errors import UserError
from components.report.gallery import write_gallery
from components.report.page import write_report
from tests.components.report.conftest import write_build
from tests.components.report.test_page import Page

ARMS = ["grpo", "garl-q1"]


@pytest.fixture
def reports(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for days, name in enumerate(("project", "experiments/<b>hot")):
        build = write_build(tmp_path / "made" / str(days), ARMS, [0, 1], start="warm" if days else "cold")
        for record in build.rglob("train.json"):
            record.write_text(record.read_text().replace("2026-11-27", "2026-11-28") if days else record.read_text())
        write_report(build, ARMS, [0, 1], build / "report")
        found[name] = build / "report"
    return found


def test_every_sweep_has_its_best_arm_and_a_copy_of_its_report(reports: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "gallery"
    newest, oldest = write_gallery(reports, out)
    assert (newest.name, newest.when, newest.start) == ("<b>hot", "2026-11-28", "warm")
    assert (oldest.name, oldest.when, oldest.best) == ("project", "2026-11-27", "GARL q=1")
    rows = [row for row in json.loads((reports["project"] / "results.json").read_text()) if row["arm"] == "garl-q1"]
    assert oldest.maj_at_k.value == pytest.approx(sum(row["maj_at_4"] for row in rows) / 2)
    assert oldest.maj_at_k.low == pytest.approx(sum(row["maj_at_4_interval"][0] for row in rows) / 2)

    page = Page((out / "index.html").read_text(encoding="utf-8"))
    assert f"{100 * oldest.maj_at_k.value:.1f}%" in page.text
    links = page.values("href")
    assert len(links) == len(reports)
    for link, folder in zip(sorted(links, key=len), reports.values(), strict=True):
        assert (out / link).read_bytes() == (folder / "index.html").read_bytes()
    assert not any(tag == "b" for tag, _ in page.tags)


def test_what_cannot_be_gathered_is_one_sentence(reports: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no sweep has a report yet; run `thaw sweep`"):
        write_gallery({}, tmp_path / "gallery")
    (reports["project"] / "results.json").write_text('[{"task": "skills"}]')
    with pytest.raises(UserError, match=r"results\.json is damaged .*write it again: `thaw report`"):
        write_gallery(reports, tmp_path / "gallery")
    assert not (tmp_path / "gallery").exists()
