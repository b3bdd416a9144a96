"""Opening the store: from nothing, from an older MLflow, and when nobody answers."""

import sqlite3
import time
import traceback
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from components.addresses import shown
from components.errors import UserError
from components.tracking.runs import Tracker, connect
from components.tracking.store import open_store, quoted


def test_the_store_is_opened_again_as_it_was(root: Path) -> None:
    first, second = open_store(root), open_store(root)
    assert first.experiment_id == second.experiment_id
    assert first.client.get_experiment(first.experiment_id).name == "thaw"
    assert sorted(path.name for path in root.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


def test_the_store_of_an_older_mlflow_is_upgraded(tmp_path: Path) -> None:
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db import utils
    from mlflow.store.tracking.dbmodels.initial_models import Base

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    config = utils._get_alembic_config(uri)
    Base.metadata.create_all(utils.create_sqlalchemy_engine(uri))
    newest = ScriptDirectory.from_config(config).get_revision("head")
    assert newest is not None
    assert isinstance(newest.down_revision, str)
    command.upgrade(config, newest.down_revision)

    assert open_store(tmp_path).experiment_id
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchone() == (newest.revision,)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database" * 1000)
    with pytest.raises(UserError, match=r"mlflow\.db cannot be used: .*file is not a database"):
        connect(tmp_path)


def test_a_deleted_experiment_is_not_silently_replaced(tracker: Tracker) -> None:
    tracker.store.client.delete_experiment(tracker.store.experiment_id)
    with pytest.raises(UserError, match="mlflow experiments restore --experiment-id 1"):
        connect(tracker.root)


@pytest.mark.parametrize("uri", ["./mlruns", "ftp://somewhere"])
def test_a_uri_that_mlflow_refuses_is_named(root: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match=f"MLflow at {uri} cannot be used"):
        connect(root)


def test_a_server_that_does_not_answer_is_named_in_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9/")  # the discard port; nobody listens
    start = time.monotonic()
    with pytest.raises(UserError, match=r"no MLflow server answers at http://127\.0\.0\.1:9/; start it") as caught:
        connect(root, timeout=1)
    assert time.monotonic() - start < 3
    assert "secret" not in str(caught.value)


def test_a_locked_store_is_tried_again(tracker: Tracker) -> None:
    attempts: list[int] = []

    def busy(times: int) -> str:
        attempts.append(1)
        if len(attempts) <= times:
            raise MlflowException("database is locked", TEMPORARILY_UNAVAILABLE)
        return "done"

    assert tracker.store.call(busy, 2) == "done"
    assert len(attempts) == 3
    impatient = connect(tracker.root, patience=0.2).store
    with pytest.raises(UserError, match=r"did not answer for 0\.2 seconds; .*database is locked"):
        impatient.call(busy, 100)


def test_other_errors_are_not_tried_again(tracker: Tracker) -> None:
    attempts: list[int] = []

    def wrong() -> None:
        attempts.append(1)
        raise MlflowException("wrong")

    with pytest.raises(MlflowException, match="wrong"):
        tracker.store.call(wrong)
    assert len(attempts) == 1


def test_search_values_are_quoted() -> None:
    assert quoted("plain") == "'plain'"
    assert quoted("it's") == '"it\'s"'
    with pytest.raises(UserError, match="both kinds of quotes"):
        quoted("'\"")


def test_passwords_are_not_shown() -> None:
    assert shown("postgresql://me:secret@db:5432/mlflow") == "postgresql://db:5432/mlflow"
    assert shown("sqlite:////data/a@b/mlflow.db") == "sqlite:////data/a@b/mlflow.db"
    assert shown("http://me:s@cr@t@host/x is away") == "http://host/x is away"
    assert shown("postgresql://me:se/cr@et@db/mlflow?sslmode=x&password=secret") == "postgresql://db/mlflow"
    assert (
        shown("call to 'http://me:secret@a/b?k=secret' failed, see http://c/d")
        == "call to 'http://a/b' failed, see http://c/d"
    )


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://me:{}@127.0.0.1:1/db",
        "postgresql://127.0.0.1:1/db?user=me&password={}",
        "postgresql+none://me:{}@127.0.0.1/db",
        "mysql://me:{}@127.0.0.1:1/db",
        "http://me:{}@127.0.0.1:1",
        "other://me:{}@127.0.0.1",
    ],
)
def test_a_store_that_cannot_be_used_shows_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], uri: str
) -> None:
    secret = "s3cr3t-Pa55"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(secret))
    with pytest.raises(UserError, match=r"MLflow|PostgreSQL") as error:
        open_store(tmp_path, timeout=0.1, patience=0.1)
    assert secret not in "".join(traceback.format_exception(error.value))
    assert secret not in "".join(capfd.readouterr())


def test_a_project_that_has_moved_keeps_its_files(
    root: Path, checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with connect(root).run("arm") as run:
        run.artifact(checkpoint / "config.json")
        run.register(checkpoint, "thaw-skills", step=1, tags={}, metrics={})
    moved = root.rename(root.with_name("another, 100% different"))
    for told in (1, 0):  # it is said once
        tracker = connect(moved)
        assert capfd.readouterr().err.count("the project has moved") == told
        assert (tracker.registry.download("thaw-skills/1") / "model.safetensors").is_file()
    with tracker.run("another") as later:
        later.artifact(checkpoint / "config.json")
    for one in (run, later):
        file = Path(tracker.store.client.download_artifacts(one.id, "config.json"))
        assert file.read_bytes() == (checkpoint / "config.json").read_bytes()
    assert not root.exists()
    with closing(sqlite3.connect(moved / "mlflow.db")) as store:
        assert str(root) not in "\n".join(store.iterdump())
