"""`thaw sweep` on the real pipeline, made small: what it leaves behind, and what it does not do twice."""

import re
import shutil
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from components.data.digest import dvc_md5
from components.data.skills import KINDS
from components.forecast import read
from components.tracking.version import Version
from tasks.build import Build
from tests.flows.conftest import Swept
from tests.flows.scratch import Scratch, built_in

pytestmark = pytest.mark.slow  # all of them wait for one sweep of about a minute

ARMS = ["grpo", "garl-q0.75", "paft-q0.75"]
STEPS = [4, 8, 12, 16]
STAGES = {"prepare", "base", "probe", "report"} | {f"{step}@{arm}-0" for step in ("train", "evaluate") for arm in ARMS}


def versions(swept: Swept) -> list[Version]:
    return swept.project.tracker().registry.versions("thaw-skills")


def test_a_first_sweep_builds_every_stage(swept: Swept):
    assert built_in(swept.log) == STAGES


def test_a_sweep_leaves_nothing_stale_for_dvc(swept: Swept):
    assert swept.project.stale() == set()
    dry = swept.project.run("dvc", "repro", "--dry")
    assert "Running stage" not in dry
    assert dry.count("didn't change, skipping") >= len(STAGES)


def test_a_second_sweep_builds_nothing_and_registers_nothing(swept: Swept):
    before = len(versions(swept))
    log = swept.project.run("thaw", "sweep")
    assert built_in(log) == set()
    assert log.count("| up to date\n") == len(STAGES)
    assert len(versions(swept)) == before


def test_the_sweep_ends_with_a_row_for_every_arm(swept: Swept):
    table = swept.log.partition("8 test problems")[2]
    for row in ("base model", "GRPO", "GARL q=0.75", "PAFT q=0.75"):
        assert re.search(rf"^{row} .*\d\.\d \[", table, re.MULTILINE), row
    assert str(swept["report/index.html"]) in table


def test_progress_is_told_in_whole_lines(swept: Swept):
    assert "step 16: validation maj@4" in swept.log
    assert "\r" not in swept.log
    assert not re.search(r"it/s\]\S|\?it/s", swept.log)


def test_every_checkpoint_of_every_arm_is_registered_with_its_tags(swept: Swept):
    found = versions(swept)
    assert len(found) == len(ARMS) * len(STEPS)
    data = dvc_md5(swept["data"])
    methods = {"grpo": ("grpo", "none"), "garl-q0.75": ("garl", "0.75"), "paft-q0.75": ("paft", "0.75")}
    for arm, (method, q) in methods.items():
        run_id = swept.json(f"train/{arm}/0/train.json")["mlflow_run_id"]
        of_arm = [version for version in found if version.run_id == run_id]
        assert [version.step for version in of_arm] == STEPS
        for version in of_arm:
            assert version.tags["mlflow.source.git.commit"] == swept.project.run("git", "rev-parse", "HEAD").strip()
            tags = {name: value for name, value in version.tags.items() if not name.startswith(("thaw.", "mlflow."))}
            assert tags == {
                "estimator": method, "q": q, "task": "skills", "start": "mixed", "seed": "0", "data_md5": data,
            }  # fmt: skip
            assert {"validation/p_at_1", "validation/p_at_4", "validation/maj_at_4"} <= version.metrics.keys()


def test_the_best_checkpoint_carries_its_held_out_figures(swept: Swept):
    found = {version.version: version for version in versions(swept)}
    best = {swept.json(f"train/{arm}/0/train.json")["model_version"]: arm for arm in ARMS}
    for number, version in found.items():
        tested = {name: value for name, value in version.metrics.items() if name.startswith("test/")}
        if number in best:
            figures = swept.json(f"evaluate/{best[number]}/0/metrics.json")
            assert tested == {f"test/{name}": value for name, value in figures.items()}
        else:
            assert tested == {}


def test_the_best_version_by_validation_can_be_asked_for_by_name(swept: Swept):
    best = swept.project.tracker().registry.find("thaw-skills@best")
    assert best.metrics["validation/maj_at_4"] == max(v.metrics["validation/maj_at_4"] for v in versions(swept))


def test_a_registered_checkpoint_is_the_file_that_was_trained(swept: Swept, tmp_path: Path):
    registry = swept.project.tracker().registry
    for arm in ARMS:
        record = swept.json(f"train/{arm}/0/train.json")
        folder = registry.download(f"{record['model_name']}/{record['model_version']}", tmp_path / arm)
        assert dvc_md5(folder) == dvc_md5(swept[f"train/{arm}/0/final"])


def test_weights_are_stored_once_by_the_build_dvc_and_mlflow(swept: Swept):
    registry = swept.project.tracker().registry
    found = {dvc_md5(path): path for path in swept["train"].rglob("checkpoints/*/model.safetensors")}
    for version in versions(swept):
        weights = registry.download(version.reference) / "model.safetensors"
        md5 = dvc_md5(weights)
        assert weights.samefile(swept.project.folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:])
        assert weights.samefile(found[md5])


def test_the_arms_are_children_of_one_run_and_end_well(swept: Swept):
    client = swept.project.tracker().store.client
    runs = [client.get_run(swept.json(f"train/{arm}/0/train.json")["mlflow_run_id"]) for arm in ARMS]
    [parent] = {run.data.tags["mlflow.parentRunId"] for run in runs}
    assert client.get_run(parent).info.run_name == "skills-mixed"
    assert [run.info.run_name for run in runs] == [f"{arm}-seed0" for arm in ARMS]
    for run in runs:
        assert run.info.status == "FINISHED"
        assert run.data.params["settings.train.steps"] == "16"
        history = client.get_metric_history(run.info.run_id, "train/p_estimate")
        assert [value.step for value in history] == list(range(1, 17))
        assert {"test/maj_at_4", "validation/maj_at_4"} <= run.data.metrics.keys()


def test_the_probe_looked_ahead_for_every_arm_and_is_a_run_beside_them(swept: Swept):
    forecasts = read(swept["probe"])
    assert [item.arm for item in forecasts] == ARMS
    client = swept.project.tracker().store.client
    arm = client.get_run(swept.json("train/grpo/0/train.json")["mlflow_run_id"])
    [run] = client.search_runs([arm.info.experiment_id], "attributes.run_name = 'probe'")
    assert run.data.tags["mlflow.parentRunId"] == arm.data.tags["mlflow.parentRunId"]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["probe/p0_mean"] == swept.json("probe/probe.json")["p0"]["mean"]
    for item in forecasts:
        assert run.data.metrics[f"forecast/{item.arm}/gain_nats"] == item.gain.value
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"probe.json", "forecast.json"}
    assert "What the probe forecast" in swept["report/index.html"].read_text(encoding="utf-8")
    assert "RL stalls here" in swept.log
    assert re.search(r"looking ahead 1 steps for each of 3 arms: some [\d,]+ rollouts", swept.log)


def test_runs_name_the_data_as_dvc_does(swept: Swept):
    [locked] = [out["md5"] for out in swept.lock()["prepare"]["outs"]]
    client = swept.project.tracker().store.client
    for arm in ARMS:
        run = client.get_run(swept.json(f"train/{arm}/0/train.json")["mlflow_run_id"])
        assert [found.dataset.digest for found in run.inputs.dataset_inputs] == [locked]


def test_results_json_tells_what_comparisons_need(swept: Swept):
    rows = swept.json("report/results.json")
    assert [row["arm"] for row in rows] == ["base", *ARMS]
    assert [(row["method"], row["q"]) for row in rows[1:]] == [("grpo", None), ("garl", 0.75), ("paft", 0.75)]
    for row in rows:
        assert (row["task"], row["start"], row["split"]) == ("skills", "mixed", "test")
        for figure in ("p_at_1", "p_at_4", "maj_at_4"):
            low, high = row[f"{figure}_interval"]
            assert 0 <= low <= row[figure] <= high <= 1
    assert all(row["kinds"] and row["kinds"].keys() <= set(KINDS) for row in rows)
    for row in rows[1:]:
        record = swept.json(f"train/{row['arm']}/0/train.json")
        assert row["seed"] == 0
        assert row["steps"] == 16
        assert row["wall_seconds"] > 0
        assert row["checkpoint"] == f"build/train/{row['arm']}/0/final"
        for name in ("mlflow_run_id", "model_name", "model_version"):
            assert row[name] == record[name]
        figures = swept.json(f"evaluate/{row['arm']}/0/metrics.json")
        assert row["maj_at_4"] == figures["maj_at_4"]


def test_the_report_shows_every_arm_and_needs_no_network(swept: Swept):
    page = swept["report/index.html"].read_text(encoding="utf-8")
    for label in ("GRPO", "GARL q=0.75", "PAFT q=0.75"):
        assert label in page
    assert not re.search(r"(?:src|href)=.?https?://", page)


def test_two_stages_ran_at_a_time(swept: Swept):
    """Without this the comparison of parallel with sequential arms would compare nothing."""
    spans = []  # in whole seconds
    for end, seconds in re.findall(r"(\d\d:\d\d:\d\d) \| (?:probe|\w+@\S+) \| built in (\d+) s", swept.log):
        ended = datetime.strptime(end, "%H:%M:%S")
        spans.append((ended - timedelta(seconds=int(seconds)), ended))
    spans.sort()
    assert len(spans) == 1 + 2 * len(ARMS)
    assert any(start + timedelta(seconds=1) < end for (_, end), (start, _) in pairwise(spans))


def test_a_new_q_reruns_its_arm_and_the_look_ahead_alone_and_the_old_one_comes_back_from_the_cache(
    copied: Scratch, monkeypatch: pytest.MonkeyPatch
):
    report = copied.folder / "build/report/results.json"
    before = report.read_bytes()
    registry = copied.tracker().registry
    registered = len(registry.versions())

    copied.change("arms=[grpo, garl-q0.5, paft-q0.75]")
    rerun = {"probe", "train@garl-q0.5-0", "evaluate@garl-q0.5-0", "report"}
    assert copied.stale() == rerun
    assert built_in(copied.run("thaw", "sweep")) == rerun
    assert copied.stale() == set()
    assert len(registry.versions()) == registered + len(STEPS)

    copied.change("arms=[grpo, garl-q0.75, paft-q0.75]")
    for step in ("train", "evaluate"):
        for arm in ("garl-q0.5", "garl-q0.75"):
            shutil.rmtree(copied.folder / "build" / step / arm)
    assert copied.stale() == {"probe", "train@garl-q0.75-0", "evaluate@garl-q0.75-0", "report"}
    monkeypatch.chdir(copied.folder)
    build = Build(copied.folder)
    assert [name for name in build.stages() if build.begin(name) is not None] == []
    assert copied.stale() == set()
    assert report.read_bytes() == before
    assert len(registry.versions()) == registered + len(STEPS)


def test_dvc_lock_can_be_committed_and_holds_every_stage(swept: Swept):
    assert set(swept.lock()) == STAGES
    changes = swept.project.run("git", "status", "--porcelain").splitlines()
    assert [line.split()[-1] for line in changes] == ["dvc.lock"]


def test_params_yaml_is_left_as_it_was(swept: Swept):
    """The sweep reads the project's settings; it writes none of its own."""
    assert not (swept.project.folder / "experiments").exists()
    content = yaml.safe_load((swept.project.folder / "params.yaml").read_text(encoding="utf-8"))
    assert content["arms"] == ARMS
