"""The other backends: PostgreSQL shared by many machines, artifacts elsewhere, and a database that is locked."""

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from components.errors import UserError
from components.tracking.runs import Tracker, connect
from components.tracking.store import NothingYet
from tests.conftest import PROJECT
from tests.postgres import Postgres

WORKER = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from components.tracking.runs import connect

root, checkpoint, machine = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
tracker = connect(root)

def arm(number):
    with tracker.run(f"{machine}-{number}", params={"seed": number}) as run:
        made = []
        for step in range(40):
            run.metrics(step, {"train/loss": step / 4, "train/p": float(number)})
            if step % 20 == 19:
                made.append(run.register(checkpoint, "thaw-skills", step=step, tags={}, metrics={"m": 1.0}).version)
    return run.id, made

with ThreadPoolExecutor(4) as pool:
    print(json.dumps(list(pool.map(arm, range(4)))))
"""


@pytest.mark.slow
def test_sixteen_runs_at_once_lose_nothing_on_postgresql(
    postgres: Postgres, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four machines, that is folders without a common lock, with four runs each, on a database without tables."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgres.database("mlflow"))
    monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", (tmp_path / "artifacts").as_uri())
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    workers = []
    for machine in range(4):
        root = tmp_path / f"machine-{machine}"
        root.mkdir()
        command = [sys.executable, "-c", WORKER, str(root), str(checkpoint), str(machine)]
        workers.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    said = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4
    runs = [run for text in said for run in json.loads(text)]

    (tmp_path / "reader").mkdir()
    tracker = connect(tmp_path / "reader")
    found = tracker.store.client.search_runs([tracker.store.experiment_id])
    assert {run.info.run_id for run in found} == {run_id for run_id, _ in runs}
    assert {run.info.status for run in found} == {"FINISHED"}
    assert len(found) == 16
    for run_id, _ in runs:
        history = tracker.store.client.get_metric_history(run_id, "train/loss")
        assert sorted((metric.step, metric.value) for metric in history) == [(step, step / 4) for step in range(40)]
        assert len(tracker.store.client.get_metric_history(run_id, "train/p")) == 40
    numbers = [number for _, made in runs for number in made]
    assert sorted(numbers) == list(range(1, 33))
    versions = tracker.registry.versions("thaw-skills")
    assert {(version.run_id, version.version) for version in versions} == {
        (run_id, number) for run_id, made in runs for number in made
    }
    files = tracker.registry.download("thaw-skills/17")
    assert files.is_relative_to(tmp_path / "artifacts")
    assert (files / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()


def test_artifacts_go_where_the_environment_says(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", (tmp_path / "elsewhere").as_uri())
    with connect(root).run("arm") as run:
        run.table("answers", {"id": [1]})
    assert list((tmp_path / "elsewhere").rglob("answers.csv"))
    assert not (root / "mlartifacts").exists()
    monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", (tmp_path / "third").as_uri())
    with pytest.raises(UserError, match=r"keeps its artifacts in .*elsewhere.* and not in .*third"):
        connect(root)
    monkeypatch.delenv("MLFLOW_DEFAULT_ARTIFACT_ROOT")
    assert connect(root).store.client.get_run(run.id).info.artifact_uri.startswith((tmp_path / "elsewhere").as_uri())


@pytest.mark.slow
def test_who_only_reads_makes_no_tables_in_postgresql_and_a_user_or_database_it_does_not_know_is_told(
    postgres: Postgres, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = postgres.database("empty")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for _ in range(2):
        with pytest.raises(
            NothingYet, match=r"^MLflow at postgresql://127\.0\.0\.1:[0-9]+/empty is empty; `thaw sweep`"
        ):
            connect(root, make=False)
    assert connect(root).store.experiment_id == connect(root, make=False).store.experiment_id
    for wrong in (uri.replace("/empty", "/none"), uri.replace("postgres@", "nobody:secret@")):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", wrong)
        with pytest.raises(UserError, match="does not know this user or database; create it, or correct MLFLOW"):
            connect(root)


@pytest.mark.slow
def test_a_locked_database_file_loses_nothing(
    tracker: Tracker, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else writes to mlflow.db for longer than SQLite itself waits."""
    monkeypatch.setattr("components.tracking.metric_writer.FLUSH_SECONDS", 0.1)
    run = tracker.run("arm")
    run.flush()
    other = sqlite3.connect(tracker.root / "mlflow.db", isolation_level=None, check_same_thread=False)
    with ThreadPoolExecutor(1) as pool:
        other.execute("BEGIN EXCLUSIVE")
        threading.Timer(8, other.execute, ["COMMIT"]).start()
        started = time.monotonic()
        for step in range(20):
            run.metrics(step, {"loss": float(step)})
        assert time.monotonic() - started < 1, "training waited for the database"
        newcomer = pool.submit(connect, tracker.root)
        version = run.register(checkpoint, "thaw-skills", step=19, tags={}, metrics={"m": 1.0})
        assert time.monotonic() - started > 7, "it was not locked"
    run.finish()
    history = tracker.store.client.get_metric_history(run.id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(step, float(step)) for step in range(20)]
    assert newcomer.result().registry.versions("thaw-skills") == [version]


@pytest.mark.slow
def test_a_database_file_that_stays_locked_is_told_and_the_run_goes_on_later(tracker: Tracker) -> None:
    impatient = connect(tracker.root, patience=1)
    run = impatient.run("arm")
    run.metrics(1, {"loss": 1.0})
    run.flush()
    with sqlite3.connect(tracker.root / "mlflow.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        run.metrics(2, {"loss": 0.5})
        with pytest.raises(UserError, match=r"did not answer for 1 seconds; the last 1 metric values .* resume"):
            run.finish()
        other.execute("ROLLBACK")
    assert tracker.store.client.get_run(run.id).info.status == "RUNNING"
    with tracker.run("arm", resume=run.id) as again:
        again.metrics(2, {"loss": 0.5})
    history = tracker.store.client.get_metric_history(run.id, "loss")
    assert {(metric.step, metric.value) for metric in history} == {(1, 1.0), (2, 0.5)}
