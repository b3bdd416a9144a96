"""--json: one value on standard output and nothing else there, in a shape that stays."""

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from components.tracking.runs import Tracker
from flows.output import aside, print_json
from tests.conftest import PROJECT
from tests.flows.conftest import Swept, Thaw
from tests.tasks.test_registry import evaluated


def test_what_is_said_meanwhile_goes_to_standard_error(capfd: pytest.CaptureFixture[str]):
    with aside(True):
        print("from Python")
        subprocess.run([sys.executable, "-c", "print('from a process')"], check=True)
    print_json({"a": 1})
    out, err = capfd.readouterr()
    assert json.loads(out) == {"a": 1}
    assert sorted(err.split("\n")) == ["", "from Python", "from a process"]
    with aside(False):
        print("to people")
    assert capfd.readouterr() == ("to people\n", "")


def test_values_become_plain_json(capsys: pytest.CaptureFixture[str]):
    @dataclass
    class Item:
        path: Path
        value: float

    print_json([Item(Path("a/b"), math.nan), {1: (math.inf, "ö\ud800")}])
    assert json.loads(capsys.readouterr().out) == [{"path": "a/b", "value": None}, {"1": [None, "ö\ud800"]}]


def answer(thaw: Thaw, folder: Path, *arguments: str, status: int = 0) -> Any:
    said = thaw(folder, *arguments, "--json")
    assert said.status == status, said.err
    return json.loads(said.out)


def test_plan_and_theory_and_prepare(tmp_path: Path, thaw: Thaw):
    (tmp_path / "params.yaml").write_bytes((PROJECT / "params.yaml").read_bytes())
    found = answer(thaw, tmp_path, "plan", "--memory", "80")
    assert (found["device"], found["memory"], found["fits"], found["lacking"]) == ("a GPU", 80 * 10**9, True, None)
    assert (
        found["peak"]
        == max(phase["bytes"] for phase in found["phases"])
        + sum(found["state"].values())
        - (found["state"]["own"])
        + found["sampler"]
    )
    found = answer(thaw, tmp_path, "theory", "--p0", "1e-9", "--q", "0,1")
    assert [row["q"] for row in found["theory"]["rows"]] == [0, 1]
    assert Path(tmp_path / found["page"]).is_file()
    data = ("--set", f"task.path={PROJECT / 'data/skills'}", "--set", "task.train=4")
    assert answer(thaw, tmp_path, "prepare", *data)["train"]["final"] == 4


def test_registered_versions(tracker: Tracker, thaw: Thaw, tmp_path: Path):
    (tmp_path / "params.yaml").write_bytes((PROJECT / "params.yaml").read_bytes())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    tags = {"estimator": "garl", "q": "0.75", "task": "skills", "start": "cold", "seed": "0"}
    for accuracy in (0.2, 0.9):
        with tracker.run("an arm") as run:
            version = run.register(tmp_path / "model", "thaw-skills", step=1, tags=tags, metrics={})
        evaluated(tracker, version, "test", accuracy, tmp_path)
    first, second = "thaw-skills/1", "thaw-skills/2"
    found = answer(thaw, tmp_path, "compare", first, second, "--page", "page.html")
    assert (found["on"], [item["model"] for item in found["versions"]]) == ("test", [first, second])
    assert set(found["versions"][0]) == {
        "model", "arm", "aliases", "task", "start", "seed", "step", "created", "mlflow_run_id", "figures",
    }  # fmt: skip
    assert found["versions"][1]["figures"]["test/maj_at_4"] > 0.5
    [pair] = found["comparisons"]
    assert (pair["first"], pair["second"], pair["k"], pair["examples"]) == (first, second, 4, 60)
    assert set(pair["maj_at_k"]["difference"]) == {"value", "low", "high"}
    assert (tmp_path / "page.html").is_file()
    assert answer(thaw, tmp_path, "promote", first)["promoted"]
    assert answer(thaw, tmp_path, "promote", second)["promoted"]
    assert not answer(thaw, tmp_path, "promote", first, status=1)["promoted"]
    assert answer(thaw, tmp_path, "promote", "thaw-skills", "--undo")["told"].startswith(f"{second} is no longer")


@pytest.mark.slow
def test_lineage_and_evaluation(swept: Swept, thaw: Thaw, tmp_path: Path):
    traced = answer(thaw, swept.project.folder, "lineage", "thaw-skills@best")
    assert traced["model"].startswith("thaw-skills/")
    assert set(traced["facts"][0]) == {"name", "value", "state", "note"}
    scored = answer(thaw, swept.project.folder, "evaluate", traced["model"], "--out", str(tmp_path / "out"))
    assert scored["figures"] == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert scored["samples"] == str(tmp_path / "out" / "samples.jsonl")


@pytest.mark.slow
def test_a_sweep_says_everything_else_on_standard_error(swept: Swept):
    done = subprocess.run(
        ["thaw", "sweep", "--json"], cwd=swept.project.folder, env=swept.project.environment, text=True,
        stdin=subprocess.DEVNULL, capture_output=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["results"] == swept.json("report/results.json")
    assert os.path.samefile(found["report"], swept["report/index.html"])
    assert "q_sweep" in done.stderr
