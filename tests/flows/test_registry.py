"""The registry's commands on a project that was swept: compare, promote, lineage, and the same on another machine."""

import hashlib
import json
import re
import sqlite3
import subprocess
from pathlib import Path

import pytest
import yaml

from components.data.digest import dvc_md5
from components.tracking.version import Version
from tests.flows.conftest import Swept, Thaw
from tests.flows.scratch import Scratch

pytestmark = pytest.mark.slow

ARM = "garl-q0.75"


def version_of(project: Scratch, arm: str = ARM) -> Version:
    """The registered version that is the final checkpoint of an arm."""
    record = json.loads((project.folder / f"build/train/{arm}/0/train.json").read_text())
    return project.tracker().registry.find(f"thaw-skills/{record['model_version']}")


def traced(said: str) -> dict[str, tuple[str, str]]:
    """What `thaw lineage` says, by the name of the thing: state and value."""
    lines = re.findall(r"^  (\S+(?: \S+)?) +(true|not here|FALSE) +(\S+)  ", said, re.MULTILINE)
    return {name: (state, value) for name, state, value in lines}


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_lineage_names_what_is_there(swept: Swept, thaw: Thaw):
    project, version = swept.project, version_of(swept.project)
    said = thaw(project.folder, "lineage", version.reference)
    assert said.status == 0
    facts = traced(said.out)
    assert {state for state, _ in facts.values()} == {"true"}, said.out
    kept = project.folder / "mlartifacts/thaw" / version.run_id / "artifacts/lineage/dvc.lock"
    run = project.tracker().store.client.get_run(version.run_id)
    assert {name: value for name, (_, value) in facts.items()} == {
        "weights": dvc_md5(swept[f"train/{ARM}/0/final"]),
        "run": swept.json(f"train/{ARM}/0/train.json")["mlflow_run_id"],
        "sweep": run.data.tags["mlflow.parentRunId"],
        "git commit": git(project.folder, "rev-parse", "HEAD"),
        "dvc.lock": hashlib.md5(kept.read_bytes()).hexdigest(),
        "data": dvc_md5(swept["data"]),
        "raw data": dvc_md5(project.folder / "data/skills"),
        "base model": dvc_md5(swept["base"]),
        "recorded as": f"train@{ARM}-0",
        "settings": str(len(_settings(swept))),
        "code": git(project.folder, "rev-parse", "HEAD"),
    }
    stages = yaml.safe_load(kept.read_text())["stages"]
    assert stages["prepare"]["outs"][0]["md5"] == facts["data"][1]


def _settings(swept: Swept) -> list[str]:
    """The single settings that dvc.lock has of the stage."""
    sections = swept.lock()[f"train@{ARM}-0"]["params"]["params.yaml"]
    return [f"{name}.{key}" for name, section in sections.items() for key in section]


def test_lineage_of_an_earlier_checkpoint_leads_to_the_same_stage(swept: Swept, thaw: Thaw):
    final = version_of(swept.project)
    versions = swept.project.tracker().registry.versions("thaw-skills")
    [earlier] = [version for version in versions if version.run_id == final.run_id and version.step == 4]
    facts = traced(thaw(swept.project.folder, "lineage", earlier.reference).out)
    assert facts["weights"] == ("true", dvc_md5(swept[f"train/{ARM}/0/checkpoints/step-4"]))
    assert facts["recorded as"] == ("true", f"train@{ARM}-0")


def test_the_sweep_keeps_its_report_and_its_lock_with_its_run(swept: Swept):
    tracker = swept.project.tracker()
    sweep = version_of(swept.project).tags["mlflow.parentRunId"]
    artifacts = swept.project.folder / "mlartifacts/thaw" / sweep / "artifacts"
    for name in ("index.html", "results.json"):
        assert (artifacts / "report" / name).read_bytes() == swept[f"report/{name}"].read_bytes()
    lock = (swept.project.folder / "dvc.lock").read_bytes()
    assert (artifacts / "lineage/dvc.lock").read_bytes() == lock
    tags = tracker.store.client.get_run(sweep).data.tags
    assert tags["thaw.dvc_lock_md5"] == hashlib.md5(lock).hexdigest()
    with sqlite3.connect(swept.project.prefect / "prefect.db") as database:
        shown = database.execute("SELECT key, data FROM artifact").fetchall()
    # Sweeps of copies, in other tests, go on with the same MLflow run.
    assert {key for key, data in shown if sweep in str(data)} == {"sweep-report"}
    tables = [json.loads(json.loads(data)) for key, data in shown if key == "sweep-results"]
    assert swept.json("report/results.json") in tables


def test_what_is_no_longer_true_is_told(copied: Scratch, thaw: Thaw):
    version = version_of(copied)
    (copied.folder / "build/data/report.json").write_text("{}")
    (copied.folder / "build/base/config.json").write_text("{}")
    for name in ("data", "base"):  # nor may they be found in DVC's cache
        md5 = {"data": version.tags["data_md5"], "base": _md5_in_lock(copied, "base")}[name]
        (copied.folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).unlink()
    facts = traced(thaw(copied.folder, "lineage", version.reference).out)
    assert {name for name, (state, _) in facts.items() if state != "true"} == {"data", "base model"}
    assert facts["data"] == ("not here", version.tags["data_md5"])

    registry = copied.tracker().registry
    registry.set_tags(version, {"thaw.weights_md5": "0" * 32 + ".dir", "mlflow.source.git.commit": "0" * 40})
    (copied.folder / "dvc.lock").unlink()
    said = thaw(copied.folder, "lineage", version.reference)
    assert said.status == 1
    facts = traced(said.out)
    assert facts["weights"][0] == "FALSE"
    assert facts["git commit"][0] == "not here"
    assert facts["recorded as"][0] == "not here"


def _md5_in_lock(project: Scratch, stage: str) -> str:
    lock = yaml.safe_load((project.folder / "dvc.lock").read_text())
    return lock["stages"][stage]["outs"][0]["md5"]


def test_a_fresh_clone_restores_the_build_and_lineage_leads_there(
    copied: Scratch, thaw: Thaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Another machine: git and the DVC remote have everything, the MLflow store is shared."""
    version = version_of(copied)
    copied.run("dvc", "remote", "add", "--default", "team", str(tmp_path / "remote"))
    copied.run("dvc", "push", "--quiet")
    copied.commit()
    clone = Scratch(tmp_path / "clone", copied.prefect)
    git(tmp_path, "clone", "--quiet", str(copied.folder), str(clone.folder))
    clone.run("dvc", "pull", "--quiet")
    said = clone.run("dvc", "repro")
    assert "Running stage" not in said
    assert clone.stale() == set()
    assert git(clone.folder, "status", "--porcelain") == ""
    for path in ("build/data", f"build/train/{ARM}/0/final", "build/report"):
        assert dvc_md5(clone.folder / path) == dvc_md5(copied.folder / path)
    assert dvc_md5(clone.folder / "build/data") == version.tags["data_md5"]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copied.folder / 'mlflow.db'}")
    said = thaw(clone.folder, "lineage", version.reference)
    facts = traced(said.out)
    assert {state for state, _ in facts.values()} == {"true"}, said.out


def test_versions_are_compared_promoted_and_scored_anew(copied: Scratch, thaw: Thaw):
    first, second = version_of(copied), version_of(copied, "paft-q0.75")
    said = thaw(copied.folder, "compare", first.reference, second.reference, "--page", "build/page.html")
    assert said.status == 0
    assert "percent of 8 problems" in said.out
    assert second.reference in (copied.folder / "build/page.html").read_text()

    lines = (copied.folder / "data/skills/test.jsonl").read_text().splitlines()
    (copied.folder / "new.jsonl").write_text("\n".join(lines[-5:]) + "\n")
    log = copied.run(
        "thaw", "evaluate-registry", first.reference, second.reference, "--data", "new.jsonl", "--record", "november",
        "--set", "evaluation.samples=2",
    )  # fmt: skip
    assert "new.jsonl: 5 questions" in log
    for version in (first, second):
        evaluated = copied.tracker().registry.find(version.reference)
        assert {"november/p_at_1", "november/maj_at_2", "november/maj_at_2_low"} <= set(evaluated.metrics)
        run = copied.tracker().store.client.get_run(version.run_id)
        assert run.data.metrics["november/maj_at_2"] == evaluated.metrics["november/maj_at_2"]
    said = thaw(copied.folder, "compare", first.reference, second.reference, "--on", "november")
    assert "percent of 5 problems" in said.out

    assert thaw(copied.folder, "promote", first.reference).status == 0
    said = thaw(copied.folder, "promote", second.reference)
    assert said.status == 1
    assert f"{first.reference} stays the champion: maj@4 on test" in said.out
    assert thaw(copied.folder, "evaluate", "thaw-skills@champion").status == 0
    assert thaw(copied.folder, "promote", "thaw-skills", "--undo").out == (
        f"{first.reference} is no longer champion; thaw-skills has no champion.\n"
    )
