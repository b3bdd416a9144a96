"""The picture of a sweep: the one that is kept is of today's results, and each bar is as long as a seed's figure."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from studies.picture import OUT, STUDY, THEMES, write_pictures
from tests.conftest import PROJECT

WHOLE = 132  # the width of a bar of 100%


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.chdir(PROJECT)
    return write_pictures(STUDY, tmp_path)


def test_the_kept_pictures_are_up_to_date(pictures: list[Path]) -> None:
    for drawn in pictures:
        kept = (PROJECT / OUT / drawn.name).read_text(encoding="utf-8")
        assert drawn.read_text(encoding="utf-8") == kept, "`make picture` draws it anew"


def test_a_bar_for_each_seed_that_solves_something(pictures: list[Path]) -> None:
    rows = [row for row in json.loads((PROJECT / STUDY / "result.json").read_text()) if row["sweep"] == "adamw-5e-4"]
    figures = sorted(WHOLE * kind["maj_at_16"] for row in rows for kind in row["kinds"].values() if kind["maj_at_16"])
    for drawn, colours in zip(pictures, THEMES.values(), strict=True):
        root = ElementTree.parse(drawn).getroot()
        ground = {colours["paper"], colours["track"]}
        bars = [bar for bar in root.iter("{http://www.w3.org/2000/svg}rect") if bar.get("fill") not in ground]
        assert sorted(float(bar.get("width", "")) for bar in bars) == pytest.approx(figures, abs=0.01)
        assert "GRPO 1, GARL q=0 1" in "".join(root.itertext())
