"""A race with everything real: who stops, what DVC, MLflow and the report say of it, and what is run again."""

import filecmp
import json
from pathlib import Path

import psutil
import pytest
import yaml

from tests.flows.scratch import Scratch, built_in, until

ARMS = ["grpo", "garl-q0.75"]
RACE = ["arms=[grpo, garl-q0.75]", "race.rungs=[4, 8]", "train.steps=12", "probe.look_ahead=0"]


@pytest.fixture(scope="module")
def raced(fresh: Scratch, tmp_path_factory: pytest.TempPathFactory) -> tuple[Scratch, str]:
    """A race that was killed when the first arm had come to the first rung, and run again; what the second run said."""
    project = fresh.copy(tmp_path_factory.mktemp("raced") / "project")
    project.change(*RACE)
    race = project.start("thaw", "sweep", "--race", "--name", "race")
    try:
        until(lambda: any(project.folder.glob("experiments/race/build/train/*/0/state/step-4")))
        below = psutil.Process(race.pid).children(recursive=True)
    finally:
        race.kill()
        race.wait()
    assert psutil.wait_procs(below, 30)[1] == []
    assert stopped(project) == {}
    return project, project.run("thaw", "sweep", "--race", "--name", "race")


def stopped(project: Scratch) -> dict[str, dict[str, object]]:
    content = yaml.safe_load((project.folder / "experiments/race/params.yaml").read_text(encoding="utf-8"))
    return content["race"]["stopped"]


def inputs(build: Path) -> list[str]:
    """Those of the race, whose data was prepared from its own folder."""
    return ["--data", str(build / "data"), "--base", str(build / "base"), "--set", "task.path=../../data/skills"]


def test_an_arm_stops_at_the_rung_and_the_other_reaches_the_end(raced: tuple[Scratch, str]) -> None:
    project, said = raced
    stops = stopped(project)
    assert [stop["step"] for stop in stops.values()] == [4]
    for arm in ARMS:
        record = json.loads((project.folder / f"experiments/race/build/train/{arm}/0/train.json").read_text())
        stop = stops.get(arm)
        assert record["steps"] == (stop["step"] if stop else 12)
        assert record["stopped"] == (stop and stop["reason"])
        if stop:
            assert "rung 8" not in said  # one arm alone needs no other
            assert f"{arm} stops at step {stop['step']}: {stop['reason']}" in said
    rows = json.loads((project.folder / "experiments/race/build/report/results.json").read_text(encoding="utf-8"))
    assert [row["stopped"] for row in rows] == [None, *(stops.get(arm, {}).get("reason") for arm in ARMS)]
    page = (project.folder / "experiments/race/build/report/index.html").read_text(encoding="utf-8")
    assert "it took 16 steps of training, all arms to the end would have taken 24" in page
    assert yaml.safe_load((project.folder / "params.yaml").read_text())["race"]["stopped"] == {}


def test_mlflow_says_which_arm_was_stopped_when_and_why(raced: tuple[Scratch, str]) -> None:
    project, _ = raced
    stops, client = stopped(project), project.tracker().store.client
    for arm in ARMS:
        record = json.loads((project.folder / f"experiments/race/build/train/{arm}/0/train.json").read_text())
        run = client.get_run(record["mlflow_run_id"])
        assert run.info.status == "FINISHED"
        told = {name: value for name, value in run.data.tags.items() if name.startswith("thaw.stopped.")}
        stop = stops.get(arm)
        expected = {"thaw.stopped.step": str(stop["step"]), "thaw.stopped.reason": stop["reason"]} if stop else {}
        assert told == expected
        steps = [value.step for value in client.get_metric_history(run.info.run_id, "train/p_estimate")]
        assert sorted(set(steps)) == list(range(1, record["steps"] + 1))
        # What the kill caught before the first checkpoint, at step 4, is there once more, and nothing else is.
        assert max((step for step in steps if steps.count(step) > 1), default=0) <= 4
        assert "validation/log_p" in run.data.metrics


def test_dvc_has_recorded_it_and_nothing_is_run_again(raced: tuple[Scratch, str]) -> None:
    project, _ = raced
    status = project.run("dvc", "status", "--json", "experiments/race/dvc.yaml")
    assert yaml.safe_load(status.strip().splitlines()[-1]) == {}
    before = stopped(project)
    assert built_in(project.run("thaw", "sweep", "--race", "--name", "race")) == set()
    assert stopped(project) == before


def test_who_reached_the_end_is_the_run_without_a_race_and_without_a_pause(
    raced: tuple[Scratch, str], tmp_path: Path
) -> None:
    project, _ = raced
    [winner] = set(ARMS) - set(stopped(project))
    build, alone = project.folder / "experiments/race/build", tmp_path / "alone"
    project.run("thaw", "train", "--arm", winner, "--out", str(alone), *inputs(build))
    for name in ("checkpoints/step-12/model.safetensors", "curves.csv"):
        assert filecmp.cmp(build / "train" / winner / "0" / name, alone / name, shallow=False)


def test_a_stopped_run_is_not_taken_for_a_whole_one(raced: tuple[Scratch, str]) -> None:
    project, _ = raced
    [(loser, stop)] = stopped(project).items()
    build = project.folder / "experiments/race/build"
    out = str(build / "train" / loser / "0")
    said = project.run("thaw", "train", *inputs(build), "--out", out, "--arm", loser, status=2)
    assert f"belongs to another run (race.stopped: {stop['reason']} there, None now)" in said


def test_rungs_at_which_nothing_is_validated_are_refused(fresh: Scratch) -> None:
    said = fresh.run("thaw", "sweep", "--race", "--set", "race.rungs=[3]", status=2)
    assert "race.rungs = [3]: write rising multiples of train.validate_every = 4 below train.steps = 16" in said
