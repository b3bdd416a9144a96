"""What people who know DVC and MLflow look at first: metrics, plots, experiments and answers of a real sweep."""

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


def test_mlflow_has_every_arms_answers_as_a_table(swept: Swept, tmp_path: Path) -> None:
    client = swept.project.tracker().store.client
    for arm in SWEPT:
        run = swept.json(f"train/{arm}/0/train.json")
        path = client.download_artifacts(run["mlflow_run_id"], "answers/test.json", str(tmp_path))
        table = json.loads(Path(path).read_text(encoding="utf-8"))
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        samples = [json.loads(line) for line in swept[f"evaluate/{arm}/0/samples.jsonl"].open(encoding="utf-8")]
        assert [row["id"] for row in rows] == [item["id"] for item in samples]
        for row, item in zip(rows, samples, strict=True):
            assert (row["answer"], row["right"], row["rationale"]) == (
                item["answers"][0], item["correct"][0], item["rationale"],
            )  # fmt: skip
            assert row["rationale"].endswith("</think>")
            assert row["prompt"][1:5] == row["id"]
        assert {row["model"] for row in rows} == {f"{run['model_name']}/{run['model_version']}"}
        tag = client.get_run(run["mlflow_run_id"]).data.tags["mlflow.loggedArtifacts"]
        assert json.loads(tag) == [{"path": "answers/test.json", "type": "table"}]
