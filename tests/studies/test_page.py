"""The studies' page: everything that was measured is on it, and nothing of it needs the network."""

import json
import re
from pathlib import Path

import pytest
import yaml

from components.errors import UserError
from studies.page import write_page
from tests.conftest import PROJECT


def test_the_page_shows_every_study_that_was_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    kept = sorted(file.parent for file in Path("studies").glob("*/study.yaml"))
    write_page(kept, tmp_path / "page" / "index.html")
    html = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    for folder in kept:
        assert (f"<h2>{folder.name}</h2>" in html) == (folder / "result.json").is_file()
    rows = json.loads(Path("studies/ordering/result.json").read_text(encoding="utf-8"))
    assert all(row["arm"] in html for row in rows)
    assert html.count("<svg") >= len({row["sweep"] for row in rows})
    assert "`python -m studies" not in html
    assert "python -m studies ordering" in html
    assert not re.search(r"(?:src|href)=.?https?://", html)


def made(folder: Path, tables: list[str]) -> Path:
    study = {"question": "Is P < 0.1 & all?", "tables": tables, "sweeps": [{"name": "one"}]}
    rows = []
    for arm, q, steps in (("base", None, [None]), ("garl-q0.5", 0.5, [100, None]), ("garl-q1", 1.0, [9, 7])):
        for seed, step in enumerate(steps):
            each = {"sweep": "one", "arm": arm, "q": q, "seed": seed, "escape_step": step, "forecast_step": None}
            rows.append(
                each | {"steps": 200, "grad_norm": 1.0, "maj_at_4": 0.5, "set": {"task.start": 0.01 if seed else 0.001}}
            )
    folder.mkdir()
    (folder / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    (folder / "result.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "table.md").write_text("how it was run", encoding="utf-8")
    return folder


def test_forecasts_and_slopes_have_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    folder = made(tmp_path / "mine", ["forecasts", "slopes"])
    write_page([folder], tmp_path / "index.html")
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert html.count("<svg") == 2
    assert "Is P &lt; 0.1 &amp; all?" in html
    assert "q=1, slope −" in html
    assert "one: what the probe forecast, and what happened" in html


def test_no_results_and_damaged_ones_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    folder = made(tmp_path / "mine", ["slopes"])
    (folder / "result.json").write_text("[")
    with pytest.raises(UserError, match=r"result.json is damaged; run `python -m studies mine` again"):
        write_page([folder], tmp_path / "index.html")
    (folder / "result.json").unlink()
    with pytest.raises(UserError, match=r"no study has a result\.json yet"):
        write_page([folder], tmp_path / "index.html")
