"""Where builds live: whose reports are there."""

from pathlib import Path

import pytest

from tasks.workspace import finished_reports


def test_reports_are_found_by_the_name_of_their_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (".dvc", "build/report", "experiments/cold/build/report", "experiments/project/build/report"):
        (tmp_path / folder).mkdir(parents=True)
    assert finished_reports() == {}
    for folder in ("build", "experiments/cold/build", "experiments/project/build"):
        (tmp_path / folder / "report/results.json").write_text("[]")
    (tmp_path / "experiments/unfinished/build").mkdir(parents=True)
    assert finished_reports() == {
        "project": tmp_path / "build/report",
        "experiments/cold": tmp_path / "experiments/cold/build/report",
        "experiments/project": tmp_path / "experiments/project/build/report",
    }
