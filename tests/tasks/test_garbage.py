"""What is listed as unused, and above all what is not: real DVC, real git, real MLflow."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from components.errors import UserError
from components.tracking.runs import Tracker, connect
from tasks.folder_lock import alone_in, working_in
from tasks.garbage import freed, garbage, remove, size
from tests.tasks.conftest import Toy
from tests.tasks.test_build import build_all, change

STAGES = ("prepare", "base", "train@grpo-0")


@pytest.fixture
def tracker(toy: Toy, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    """Of a new project, in which we are."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = toy(train="mkdir -p $2\ncat params.yaml > $2/final\n")
    shutil.copy(empty_database, folder / "mlflow.db")
    return connect(folder)


@pytest.fixture
def listed(tracker: Tracker) -> Callable[[], dict[str, str]]:
    """What is unused now: the reason by path."""

    def look() -> dict[str, str]:
        with garbage(tracker.root, tracker.store) as found:
            return {str(path.relative_to(tracker.root)): item.why for item in found for path in item.paths}

    return look


Listed = Callable[[], dict[str, str]]


def remove_all(tracker: Tracker) -> None:
    with garbage(tracker.root, tracker.store) as found:
        for item in found:
            remove(item)


def commit(folder: Path) -> None:
    who = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false")
    for command in (["add", "--all", "--", ":!mlflow*"], [*who, "commit", "--quiet", "--message", "as it is"]):
        subprocess.run(["git", *command], cwd=folder, check=True)


def write(path: Path, **content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


# Runs


def test_half_written_folders_are_unused_unless_somebody_writes_them(tracker: Tracker, listed: Listed):
    run = tracker.root / "runs" / "mine"
    names = ["checkpoints/step-2.partial", "checkpoints/.download-x", "final.partial", "state/step-2.partial"]
    for name in (*names, "checkpoints/step-1", "state/step-1"):
        write(run / name / "file")
    with working_in(run), working_in(run):
        assert listed() == {}
    assert listed() == dict.fromkeys((f"runs/mine/{name}" for name in names), "half-written by a process that is gone")
    remove_all(tracker)
    left = {path.relative_to(run).as_posix() for path in run.rglob("file")}
    assert left == {"checkpoints/step-1/file", "state/step-1/file"}


def test_a_state_is_unused_once_its_own_run_has_ended(tracker: Tracker, listed: Listed):
    run = tracker.root / "build/train/grpo/0"
    write(run / "state/step-2/state.json", mlflow_run_id="one")
    assert listed() == {}  # it goes on from there
    write(run / "train.json", mlflow_run_id="another")
    assert listed() == {}
    write(run / "train.json", mlflow_run_id="one")
    assert listed() == {"build/train/grpo/0/state": "where to resume a run that has ended"}


def test_who_clears_a_folder_up_waits_for_nobody_and_is_waited_for(tmp_path: Path):
    with working_in(tmp_path), alone_in(tmp_path) as alone:
        assert not alone
    with alone_in(tmp_path) as alone, alone_in(tmp_path) as second:
        assert (alone, second) == (True, False)


# DVC's cache


def test_an_object_stays_as_long_as_a_lock_names_it_here_or_in_a_commit(tracker: Tracker, listed: Listed):
    folder = tracker.root
    build_all(folder, *STAGES)
    assert listed() == {}
    first = (folder / "build/train/grpo/0/final").read_bytes()
    change(folder, "steps: 4\n  groups", "steps: 5\n  groups")
    build_all(folder, *STAGES)
    [[path, why]] = listed().items()
    assert (folder / path).read_bytes() == first
    assert why == "named by no dvc.lock and no .dvc file, here or in a commit"

    # An arm that is named no more is in dvc.lock still, and so are its objects.
    change(folder, "- grpo", "- star")
    assert list(listed()) == [path]
    remove_all(tracker)
    assert listed() == {}
    change(folder, "- star", "- grpo")
    assert build_all(folder, *STAGES) == []

    commit(folder)
    change(folder, "steps: 5\n  groups", "steps: 4\n  groups")
    assert build_all(folder, *STAGES) == ["train@grpo-0"]  # its outputs are gone
    assert listed() == {}


def test_the_files_of_a_tracked_folder_stay(tracker: Tracker, listed: Listed):
    write(tracker.root / "raw/one")
    subprocess.run(["dvc", "add", "--quiet", "raw"], cwd=tracker.root, check=True)
    assert listed() == {}
    (tracker.root / "raw.dvc").unlink()
    assert len(listed()) == 2


def test_a_cache_that_other_projects_may_share_stays(tracker: Tracker, listed: Listed, tmp_path: Path):
    build_all(tracker.root, *STAGES)
    (tracker.root / "dvc.lock").unlink()
    assert len(listed()) == 3
    with (tracker.root / ".dvc" / "config").open("a") as config:
        config.write(f"[cache]\n    dir = {tmp_path / 'shared'}\n")
    shutil.move(tracker.root / ".dvc/cache", tmp_path / "shared")
    assert listed() == {}


def test_without_an_answer_of_git_nothing_is_listed(tracker: Tracker, listed: Listed):
    (tracker.root / ".git" / "HEAD").write_text("nonsense")
    with pytest.raises(
        UserError, match=r"nobody knows what the commits of .* need, for git refuses: see `git rev-list"
    ):
        listed()


# Experiments


def test_an_abandoned_experiment_keeps_the_runs_that_have_a_version_or_may_go_on(
    tracker: Tracker, listed: Listed, tmp_path: Path
):
    experiment = tracker.root / "experiments" / "mine"
    write(tmp_path / "checkpoint" / "config.json")
    for arm in ("with", "without", "deleted"):
        with tracker.run(arm) as made:
            write(experiment / "build/train" / arm / "0/checkpoints/step-1/config.json")
            if arm == "with":
                made.register(tmp_path / "checkpoint", "thaw-toy", step=1, tags={}, metrics={})
        record = "state/step-1/state.json" if arm == "deleted" else "train.json"
        write(experiment / "build/train" / arm / "0" / record, mlflow_run_id=made.id)
    tracker.store.client.delete_run(made.id)
    write(experiment / "build/train/interrupted/0/state/step-1/state.json", mlflow_run_id="of another store")
    write(experiment / "build/base/config.json")
    write(experiment / "dvc.yaml")
    assert listed() == {}
    (experiment / "dvc.yaml").unlink()
    with working_in(experiment / "build/train/with/0"):
        assert listed() == {}
    found = listed()
    names = ["base", "train/deleted/0", "train/without/0"]
    assert sorted(found) == [f"experiments/mine/build/{name}" for name in names]
    assert {why.partition(";")[0] for why in found.values()} == {
        "of an experiment without dvc.yaml and dvc.lock, which no commit has"
    }

    write(experiment / "dvc.yaml")
    commit(tracker.root)  # as on another branch
    (experiment / "dvc.yaml").unlink()
    assert listed() == {}


# Sizes


def test_a_file_with_a_name_elsewhere_frees_nothing(tmp_path: Path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, length in {"own": 1, "inside": 10, "outside": 100}.items():
        (folder / name).write_bytes(bytes(length))
    (folder / "again").hardlink_to(folder / "inside")
    (tmp_path / "elsewhere").hardlink_to(folder / "outside")
    assert size([folder]) == 111
    assert freed([folder, folder / "own"]) == 11
    assert freed([folder, tmp_path / "elsewhere"]) == 111
