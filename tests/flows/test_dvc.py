"""What people who know DVC look at first: its metrics, plots and experiments, of a real sweep."""

import json
from pathlib import Path
from typing import Any

from tests.flows.conftest import Swept

SWEPT = {"grpo", "garl-q0.75", "paft-q0.75"}


def told(swept: Swept, *command: str) -> Any:
    return json.loads(swept.project.run("dvc", *command).strip().splitlines()[-1])


def test_dvc_shows_the_figures_of_every_arm(swept: Swept) -> None:
    found = told(swept, "metrics", "show", "--json")[""]["data"]
    assert set(found) == {f"build/evaluate/{arm}/0/metrics.json" for arm in SWEPT}
    for path, entry in found.items():
        assert entry["data"] == json.loads((swept.project.folder / path).read_text(encoding="utf-8"))
    [workspace] = [row for row in told(swept, "exp", "show", "--json") if row["rev"] == "workspace"]
    assert set(workspace["data"]["metrics"]) == set(found)


def test_dvc_draws_all_arms_in_one_chart(swept: Swept, tmp_path: Path) -> None:
    spec = told(swept, "plots", "show", "--show-vega", "P of the gold answer")
    rows = spec["data"]["values"]
    assert {(row["arm"], row["seed"]) for row in rows} == {(arm, "0") for arm in SWEPT}
    assert sorted(int(row["step"]) for row in rows if row["arm"] == "garl-q0.75") == [*range(1, 17)]
    assert (spec["encoding"]["x"]["field"], spec["encoding"]["y"]["field"]) == ("step", "p")
    spec = told(swept, "plots", "show", "--show-vega", "maj@k of validation")
    validated = {int(row["step"]): float(row["validation"]) for row in spec["data"]["values"] if row["arm"] == "grpo"}
    assert list(validated) == [4, 8, 12, 16]

    swept.project.run("dvc", "plots", "show", "--out", str(tmp_path / "plots"))
    page = (tmp_path / "plots" / "index.html").read_text(encoding="utf-8")
    assert "DVC_METRIC" not in page
    assert all(f'"build/train/{arm}/0/curves.csv"' in page for arm in SWEPT)
    assert swept.project.stale() == set()
