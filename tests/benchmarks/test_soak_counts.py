"""What the soak test counts, on a store and files where everything that it looks for is there once."""

import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks.soak import Found, table
from benchmarks.soak_counts import Growth, Sample, disagreements, growth, leftovers, tracked
from components.tracking.runs import Run, Tracker

CURVES = {1: {"train/loss": 0.5}, 2: {"train/loss": 0.25, "validation/log_p": -35.03121438461878}}
HELD_OUT = {"p_at_1": 0.125}


def trained(tracker: Tracker, arm: str, figures: Mapping[int, Mapping[str, float]], parent: str) -> Run:
    """A finished arm whose files hold CURVES and HELD_OUT, while MLflow was told `figures`."""
    folder = tracker.root / "build/train" / arm / "0"
    folder.mkdir(parents=True)
    evaluated = tracker.root / "build/evaluate" / arm / "0"
    evaluated.mkdir(parents=True)
    with tracker.run(f"{arm}-seed0", parent=parent) as run:
        for step, values in figures.items():
            run.metrics(step, values)
        run.metrics(2, {f"test/{name}": value for name, value in HELD_OUT.items()})
    rows = [f"{step},{row['train/loss']},{row.get('validation/log_p', '')}" for step, row in CURVES.items()]
    (folder / "curves.csv").write_text("\n".join(["step,train/loss,validation/log_p", *rows]))
    (folder / "train.json").write_text(json.dumps({"mlflow_run_id": run.id, "best_step": 2}))
    (evaluated / "metrics.json").write_text(json.dumps(HELD_OUT))
    return run


def test_figures_that_mlflow_does_not_have_are_lost_and_a_step_logged_again_is_not(tracker: Tracker) -> None:
    parent = tracker.sweep("sweep", "digest")
    trained(tracker, "grpo", CURVES, parent)
    whole = tracked(tracker.root)
    assert (whole.finished, whole.figures, whole.lost, whole.repeated, whole.running) == (1, 4, [], 0, [])

    run = trained(tracker, "garl-q1", {1: {"train/loss": 0.5}, 2: {"train/loss": 0.24}}, parent)
    with tracker.run("garl-q1-seed0", parent=parent, resume=run.id) as again:
        again.metrics(1, {"train/loss": 0.5})
    found = tracked(tracker.root)
    assert found.lost == [
        "build/train/garl-q1/0: train/loss of step 2",
        "build/train/garl-q1/0: validation/log_p of step 2",
    ]
    assert (found.finished, found.figures, found.repeated) == (2, 8, 1)


def test_an_arm_that_mlflow_has_twice_and_a_run_that_nobody_ended_are_found(tracker: Tracker) -> None:
    parent = tracker.sweep("sweep", "digest")
    trained(tracker, "grpo", CURVES, parent)
    second = tracker.run("grpo-seed0", parent=parent)  # as if its process had been killed

    found = tracked(tracker.root)
    assert found.lost == ["2 runs named grpo-seed0"]
    assert found.running == [f"grpo-seed0 {second.id}"]
    told = disagreements({"one": "COMPLETED", "two": "RUNNING", "three": "CRASHED"}, found)
    assert told == ["Prefect: two is RUNNING", f"MLflow: grpo-seed0 {second.id} is RUNNING, and nothing runs"]


def test_growth_is_from_the_first_to_the_last_quarter_whoever_has_the_role() -> None:
    def sample(role: str, pid: int, seconds: float, resident: int) -> Sample:
        return Sample(role, pid, seconds, resident, handles=resident // 10)

    samples = [sample("serve", 1, second, 100 + second) for second in range(0, 101, 5)]
    samples += [sample("worker", 2, 0, 50), sample("worker", 3, 100, 70), sample("server", 4, 0, 9)]
    assert growth(samples) == [
        Growth("serve", 1, (112.5, 187.5), (11.0, 18.5)),
        Growth("worker", 2, (50, 70), (5, 7)),
    ]
    assert growth([]) == []


def test_what_is_left_is_counted_by_kind(tmp_path: Path) -> None:
    left = [
        "project/dvc.lock", "project/mlflow.db.lock", "project/build/train/a/0/train.json",
        "project/build/train/a/0/state/begun/state.json", "project/build/train/b/0/final.partial/weights",
        "home/thaw-server.lock", "home/thaw-runs/1", "home/concurrency_leases/expirations.json",
        "home/concurrency_leases/1.json", "tmp/of/somebody",
    ]  # fmt: skip
    for name in left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert leftovers(tmp_path / "project", tmp_path / "home", tmp_path / "tmp") == {
        "temporary files": 1,
        "half-written folders": 1,
        "states of finished trainings": 1,
        "lock files": 2,
        "notes on runs": 1,
        "leases of Prefect's": 1,
    }


def test_any_orphan_lost_figure_or_disagreement_is_a_fault_and_all_is_in_the_table(tracker: Tracker) -> None:
    trained(tracker, "grpo", CURVES, tracker.sweep("sweep", "digest"))
    grown = [Growth("worker", 2, (50e6, 70e6), (5, 7))]
    states, kills = {"COMPLETED": 5, "CRASHED": 1}, {"flow run": 1}
    found = Found(1.2, states, 1, 2, kills, [], tracked(tracker.root), [], grown, {"lock files": 3})
    assert found.faults() == []
    said = table(found)
    for row in (
        "| runs | 6: 5 completed, 1 crashed |",
        "| kills | 1: 1 of a flow run |",
        "50 to 70 MB, 5 to 7 handles",
    ):
        assert row in said
    for orphans, disagreed in ((["process 1"], []), ([], ["Prefect: one is RUNNING"])):
        assert Found(1.2, states, 1, 2, kills, orphans, tracked(tracker.root), disagreed, grown, {}).faults()
