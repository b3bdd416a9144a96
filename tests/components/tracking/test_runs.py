"""Runs under a sweep, their metrics, and what happens when one ends badly, goes on, or loses its server."""

import csv
import hashlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from components.errors import UserError
from components.tracking.lineage import Lineage
from components.tracking.runs import Tracker, connect, flat
from tests.conftest import PROJECT


def history(tracker: Tracker, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in tracker.store.client.get_metric_history(run_id, name)]


def status(tracker: Tracker, run_id: str) -> str:
    return tracker.store.client.get_run(run_id).info.status


def test_arms_are_found_under_their_sweep(tracker: Tracker) -> None:
    sweep = tracker.sweep("skills", "abc123")
    with tracker.run("garl-q0.75", parent=sweep, params={"train": {"steps": 60}}, tags={"estimator": "garl"}) as arm:
        assert status(tracker, arm.id) == "RUNNING"
    with tracker.run("grpo", parent=sweep):
        pass
    children = tracker.store.client.search_runs(
        [tracker.store.experiment_id], f"tags.mlflow.parentRunId = '{sweep}' AND tags.estimator = 'garl'"
    )
    assert [child.info.run_id for child in children] == [arm.id]
    assert children[0].info.run_name == "garl-q0.75"
    assert children[0].info.status == "FINISHED"
    assert children[0].data.params == {"train.steps": "60"}
    assert status(tracker, sweep) == "FINISHED"


def test_the_same_settings_give_the_same_sweep(tracker: Tracker) -> None:
    assert tracker.sweep("skills", "a'b") == connect(tracker.root).sweep("other name", "a'b")
    assert tracker.sweep("skills", "another") != tracker.sweep("skills", "a'b")
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: tracker.sweep("skills", "at once"), range(8)))) == 1


def test_metrics_are_all_there_at_the_end(tracker: Tracker) -> None:
    with tracker.run("arm") as run:
        for step in range(700):  # more than two batches
            run.metrics(step, {"train/loss": step / 4, "validation/maj_at_16": 0.5, "nan": math.nan})
    assert history(tracker, run.id, "train/loss") == [(step, step / 4) for step in range(700)]
    assert len(history(tracker, run.id, "validation/maj_at_16")) == 700
    assert math.isnan(tracker.store.client.get_run(run.id).data.metrics["nan"])


def test_metrics_are_sent_while_the_run_goes_on(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.tracking.metric_writer.FLUSH_SECONDS", 0.05)
    with tracker.run("arm") as run:
        run.metrics(1, {"loss": 1.0})
        wait_for(lambda: history(tracker, run.id, "loss") == [(1, 1.0)])


def test_a_metric_name_that_mlflow_refuses_is_refused_at_once(tracker: Tracker) -> None:
    with tracker.run("arm") as run, pytest.raises(ValueError, match="maj@16"):
        run.metrics(0, {"validation/maj@16": 0.5})


def test_metrics_of_a_deleted_run_are_an_error(tracker: Tracker) -> None:
    run = tracker.run("arm")
    tracker.store.client.delete_run(run.id)
    run.metrics(0, {"loss": 1.0})
    with pytest.raises(UserError, match=f"refuses the metrics of run {run.id}: .*must be in the 'active' state"):
        run.finish()


@pytest.mark.parametrize(
    ("error", "expected"), [(RuntimeError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(1), "KILLED")]
)
def test_a_run_that_ends_badly_says_so(tracker: Tracker, error: BaseException, expected: str) -> None:
    run = tracker.run("arm")
    run.metrics(3, {"loss": 1.0})
    with pytest.raises(type(error)), run:
        raise error
    assert status(tracker, run.id) == expected
    assert history(tracker, run.id, "loss") == [(3, 1.0)]


def test_resuming_goes_on_with_the_same_run(tracker: Tracker) -> None:
    params = {"steps": 4, "note": "long" * 3000}
    first = tracker.run("arm", params=params)
    for step in (1, 2):
        first.metrics(step, {"loss": 1.0})
    first.finish("KILLED")
    with connect(tracker.root).run("arm", params=params, resume=first.id) as second:
        assert second.id == first.id
        assert status(tracker, first.id) == "RUNNING"
        for step in (2, 3):
            second.metrics(step, {"loss": 0.5})
    assert status(tracker, first.id) == "FINISHED"
    assert history(tracker, first.id, "loss") == [(1, 1.0), (2, 1.0), (2, 0.5), (3, 0.5)]
    assert len(tracker.store.client.search_runs([tracker.store.experiment_id])) == 1


def test_resuming_with_other_settings_or_nothing_is_an_error(tracker: Tracker) -> None:
    with tracker.run("arm", params={"steps": 4}) as run:
        pass
    with pytest.raises(UserError, match=f"run {run.id} cannot be resumed with other settings: .*steps"):
        tracker.run("arm", params={"steps": 5}, resume=run.id)
    with pytest.raises(UserError, match="has no run 0123 to resume"):
        tracker.run("arm", resume="0123")
    tracker.store.client.delete_run(run.id)
    with pytest.raises(UserError, match="was deleted; restore it"):
        tracker.run("arm", resume=run.id)


def test_arms_that_start_at_once_note_the_same_data(tracker: Tracker) -> None:
    runs = [connect(tracker.root).run(f"arm-{number}") for number in range(8)]
    with ThreadPoolExecutor(len(runs)) as pool:
        for digest in map(str, range(3)):
            list(pool.map(lambda run, digest=digest: run.dataset("skills", "build/data", digest), runs))
    for run in runs:
        noted = tracker.store.client.get_run(run.id).inputs.dataset_inputs
        assert sorted(entry.dataset.digest for entry in noted) == ["0", "1", "2"]
        run.finish()


def test_the_digest_of_a_dataset_is_kept(tracker: Tracker) -> None:
    digest = "d41d8cd98f00b204e9800998ecf8427e.dir"  # DVC's of a folder
    with tracker.run("arm") as run:
        run.dataset("skills", "data/skills", digest)
    inputs = tracker.store.client.get_run(run.id).inputs
    assert inputs is not None
    (entry,) = inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("skills", digest)
    assert "data/skills" in entry.dataset.source


def test_artifacts_and_tables_are_kept_in_the_project(tracker: Tracker, checkpoint: Path) -> None:
    with tracker.run("arm") as run:
        run.artifact(checkpoint / "config.json")
        run.artifact(checkpoint, "all")
        run.table("answers", {"id": [1, 2], "answer": ["a", 'b, "c"']})
    folder = tracker.root / "mlartifacts" / "thaw" / run.id / "artifacts"
    assert (folder / "config.json").read_bytes() == (checkpoint / "config.json").read_bytes()
    assert (folder / "all" / "extra" / "vocab.txt").exists()
    assert (folder / "answers.csv").read_text() == 'id,answer\n1,a\n2,"b, ""c"""\n'


def test_the_page_of_a_run_is_named_without_a_password(tracker: Tracker) -> None:
    assert tracker.link("1") is None
    served = replace(tracker, store=replace(tracker.store, uri="http://me:secret@host:5000/"))
    assert served.link("1") == f"http://host:5000/#/experiments/{tracker.store.experiment_id}/runs/1"


def test_no_text_in_a_table_is_a_formula(tracker: Tracker) -> None:
    formulas = [
        "=1+1",
        "+1+1",
        "-1+1",
        "@SUM(A1)",
        " =1",
        "\t=1",
        "\r=1",
        "\n=1",
        '=HYPERLINK("http://x","y")',
        "-",
        "-1-cmd",
    ]
    plain = [-1.5, "-1.5", "+12%", "-1,300.5", "1+1", "a=b", "", None, True, "'=1"]
    with tracker.run("arm") as run:
        run.table("answers", {"id": range(len(formulas + plain)), "=text": formulas + plain})
    path = tracker.root / "mlartifacts" / "thaw" / run.id / "artifacts" / "answers.csv"
    with path.open(newline="", encoding="utf-8") as file:
        heading, *rows = csv.reader(file)
    assert heading == ["id", "'=text"]
    expected = [f"'{text}" for text in formulas] + ["" if value is None else str(value) for value in plain]
    assert [text for _, text in rows] == expected
    assert [number for number, _ in rows] == [str(number) for number in range(len(expected))]


def test_what_a_run_is_made_from_is_noted(tracker: Tracker, checkpoint: Path) -> None:
    root = tracker.root
    assert Lineage.found(root.parent, root / "dvc.lock") == Lineage({}, {})
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    (root / ".gitignore").write_text("mlflow.db*\nmlartifacts\n")
    (root / "code.py").write_text("before\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    (root / "dvc.lock").write_text("schema: '2.0'\n")  # the build's own record is no change of the code
    with replace(tracker, lock=root / "dvc.lock").run("arm") as run:
        clean = run.register(checkpoint, "thaw-skills", step=1, tags={}, metrics={})
    (root / "code.py").write_text("after\n")
    with tracker.run("arm", parent=run.id) as run:
        changed = run.register(checkpoint, "thaw-skills", step=1, tags={}, metrics={})
    expected = {"mlflow.source.git.commit": commit, "thaw.git.dirty": "false"}
    lock = (root / "dvc.lock").read_bytes()
    assert expected.items() <= clean.tags.items()
    assert clean.tags["thaw.dvc_lock_md5"] == hashlib.md5(lock).hexdigest()
    assert changed.tags["thaw.git.dirty"] == "true"
    assert changed.tags["mlflow.parentRunId"] == clean.run_id
    assert "thaw.dvc_lock_md5" not in changed.tags
    for version, tags in ((clean, expected), (changed, {**expected, "thaw.git.dirty": "true"})):
        assert tags.items() <= tracker.store.client.get_run(version.run_id).data.tags.items()
    files = root / "mlartifacts" / "thaw"
    assert (files / clean.run_id / "artifacts/lineage/dvc.lock").read_bytes() == lock
    assert "-before\n+after\n" in (files / changed.run_id / "artifacts/lineage/changes.diff").read_text()


def test_settings_are_flattened_with_dots() -> None:
    assert flat({"arms": ["grpo"], "train": {"adam": {"lr": 0.1}}}) == {"arms": ["grpo"], "train.adam.lr": 0.1}


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


FETCH = """
import sys
from pathlib import Path
from components.tracking.runs import connect
folder = connect(Path(sys.argv[1])).registry.download("thaw-skills@best")
print(folder, *(folder / "model.safetensors").read_bytes()[:1])
"""


class Server:
    """A real `mlflow server` on a free port of the loopback interface."""

    def __init__(self, folder: Path):
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(self.answers)

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def answers(self) -> bool:
        try:
            return requests.get(f"{self.uri}/health", timeout=1).ok
        except requests.RequestException:
            return False


@pytest.mark.slow
def test_a_server_that_goes_away_for_a_while_loses_no_metric(
    root: Path, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(root)
    server.start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.setattr("components.tracking.metric_writer.FLUSH_SECONDS", 0.2)
        tracker = connect(tmp_path, patience=60)
        with tracker.run("arm", parent=tracker.sweep("skills", "abc")) as run:
            version = run.register(checkpoint, "thaw-skills", step=0, tags={}, metrics={"validation/maj_at_16": 0.5})
            assert run.register(checkpoint, "thaw-skills", step=0, tags={}, metrics={}) == version
            tracker.registry.set_alias("thaw-skills", "best", version.version)
            files = tracker.registry.download("thaw-skills@best")
            assert (files / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
            fetched = [sys.executable, "-c", FETCH, str(tmp_path)]
            environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
            told = subprocess.run(fetched, env=environment, check=True, capture_output=True, text=True)
            assert Path(told.stdout.split()[0]) != files
            assert not Path(told.stdout.split()[0]).exists(), "what was fetched for a while is still there"
            for step in range(60):
                start = time.monotonic()
                run.metrics(step, {"loss": float(step)})
                assert time.monotonic() - start < 0.1, "training waited for the server"
                time.sleep(0.05)
                if step == 20:
                    server.stop()
            server.start()
        assert history(tracker, run.id, "loss") == [(step, float(step)) for step in range(60)]

        lost = connect(tmp_path, patience=1).run("arm")
        server.stop()
        lost.metrics(0, {"loss": 1.0})
        start = time.monotonic()
        with pytest.raises(UserError, match=rf"{server.uri} did not answer for 1 seconds; the last 1 metric values"):
            lost.finish()
        assert time.monotonic() - start < 5
    finally:
        server.stop()
