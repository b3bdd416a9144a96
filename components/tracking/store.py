"""Where runs and checkpoints are kept: one MLflow store that many processes open at once.

MLFLOW_TRACKING_URI says where: a server (http://...) or a database (postgresql://...). Without it everything lies in
the project's folder under MLflow's own default names, mlflow.db and mlartifacts/, so that a plain `mlflow ui` started
there shows all of it. MLFLOW_DEFAULT_ARTIFACT_ROOT says where the files of a new store without a server go (s3://...,
a shared folder); a server decides that itself. MLflow keeps absolute paths: where a project was moved, those of the
store in its folder follow (moved.py).
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import requests
from alembic.migration import MigrationContext
from alembic.util import CommandError
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.db import upgrade
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList
from sqlalchemy import create_engine, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError

from components.addresses import shown
from components.errors import Refused, UserError
from components.progress import say
from components.tracking.moved import follow
from components.tracking.trouble import first_line, is_outage, refusal

EXPERIMENT = "thaw"
DATABASE_LOCK = 0x74686177  # any number that nobody else takes
LONGEST_PAUSE = 10.0  # seconds between two attempts
FIRST_ANSWER = 30.0  # seconds to wait for it; a server that was started at the same moment needs about ten

P = ParamSpec("P")
T = TypeVar("T")


class NothingYet(UserError):
    """There is no store, for nobody has trained anything."""


@dataclass(frozen=True)
class Store:
    """An open MLflow store and the experiment in it.

    lock: held around "look it up, else make it", so that the processes of one machine make it once.
    patience: seconds for which a store that is away or busy is tried again.
    """

    client: MlflowClient
    uri: str
    experiment_id: str
    lock: FileLock
    patience: float

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call MLflow, again and again while the store is away or locked by another process.

        Raises:
            UserError: the store was away or locked for `patience` seconds, or refuses the credentials.
        """
        deadline = time.monotonic() + self.patience
        pause = 0.1
        while True:
            try:
                return function(*args, **kwargs)
            except (MlflowException, SQLAlchemyError) as error:
                if not is_outage(error):
                    if isinstance(told := refusal(self.uri, error), Refused):
                        raise told from error
                    raise
                if time.monotonic() + pause > deadline:
                    raise UserError(
                        f"MLflow at {shown(self.uri)} did not answer for {self.patience:g} seconds;"
                        f" once it is back, resume. ({first_line(error)})"
                    ) from error
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def every(self, search: Callable[..., PagedList[T]], *args: Any, **kwargs: Any) -> list[T]:
        """All that a search of MLflow's client finds, page after page."""
        page = self.call(search, *args, **kwargs)
        found = list(page)
        while page.token:
            page = self.call(search, *args, page_token=page.token, **kwargs)
            found += page
        return found


def open_store(root: Path, *, timeout: float | None = None, patience: float = 300.0, make: bool = True) -> Store:
    """Open the store that MLFLOW_TRACKING_URI names, else the SQLite store in `root`.

    timeout: seconds to wait for a server's first answer; FIRST_ANSWER if None.
    patience: seconds for which later calls bear with a store that is away or busy.
    make: whether an SQLite store that is missing is made; who only reads leaves no empty one behind.

    Raises:
        UserError: no server answers, or the store cannot be used.
        NothingYet: there is no store, and none is to be made.
    """
    timeout = FIRST_ANSWER if timeout is None else timeout
    root = root.resolve()
    uri = tracking_uri(root)
    remote, file = uri.startswith(("http://", "https://")), database_file(uri)
    if remote:
        wait_for_server(uri, timeout)
    elif not make and file and not file.is_file():
        raise NothingYet(f"nothing was trained here yet, there is no {file}; `thaw sweep` or `thaw train` begins.")
    try:
        if not (make or remote or tables(uri, timeout)[0]):
            raise NothingYet(f"MLflow at {shown(uri)} is empty; `thaw sweep` or `thaw train` begins.")
        lock = FileLock(root / "mlflow.db.lock")
        with lock if make or file else nullcontext():
            client = _unlocked(lambda: _client(uri, timeout), timeout)
            if file == root / "mlflow.db" and "MLFLOW_DEFAULT_ARTIFACT_ROOT" not in os.environ:
                follow(file, EXPERIMENT, root / "mlartifacts" / EXPERIMENT)
            experiment_id = _experiment_id(client, None if remote else _artifacts(root))
    except OSError as error:
        raise UserError(f"the folder {root}, which is to hold MLflow's files, cannot be written: {error}.") from error
    except (MlflowException, SQLAlchemyError, CommandError, ImportError) as error:  # ImportError: of a driver
        # None: the error would show the whole URI in a traceback.
        raise refusal(uri, error) or UserError(f"MLflow at {shown(uri)} cannot be used: {first_line(error)}") from None
    return Store(client, uri, experiment_id, lock, patience)


def check_store(root: Path) -> Store | None:
    """Open the store where there is one, before the work that ends in it; makes nothing.

    Raises:
        UserError: it cannot.
    """
    with suppress(NothingYet):
        return open_store(root, make=False)
    return None


def tracking_uri(root: Path) -> str:
    """The address of a project's store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"


def database_file(uri: str) -> Path | None:
    """The file of an SQLite store; None for other stores."""
    with suppress(ArgumentError):
        url = make_url(uri)
        return Path(url.database).absolute() if url.get_backend_name() == "sqlite" and url.database else None
    return None


def tables(uri: str, timeout: float) -> tuple[list[str], str | None]:
    """The tables of a database that exists, and the revision that MLflow gave them."""
    limit = "timeout" if uri.startswith("sqlite") else "connect_timeout"
    engine = create_engine(uri, connect_args={limit: max(2, int(timeout))})
    with engine.connect() as connection:
        found = inspect(connection).get_table_names()
        revision = MigrationContext.configure(connection).get_current_revision() if found else None
    engine.dispose()
    return found, revision


def quoted(text: str) -> str:
    """A value in a search filter; MLflow's filters know both quotes, but no way to escape one.

    Raises:
        UserError: the text holds both quotes.
    """
    if "'" in text and '"' in text:
        raise UserError(f"MLflow cannot search for {text}, which holds both kinds of quotes; leave one of them out.")
    return f'"{text}"' if "'" in text else f"'{text}'"


def wait_for_server(uri: str, timeout: float) -> None:
    """Wait until somebody listens.

    Raises:
        UserError: nobody does.
    """
    # By default MLflow's client sleeps for up to two minutes between its own seven attempts; `Store.call` is
    # quicker to notice that the server is back.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    deadline = time.monotonic() + timeout
    told = False
    while True:
        try:
            # Any answer will do, even a refusal: it shows that someone listens, and MLflow's client says the rest.
            requests.get(f"{uri.rstrip('/')}/health", timeout=max(0.1, deadline - time.monotonic()))
            return
        except requests.exceptions.SSLError:
            return
        except requests.RequestException as error:
            if not isinstance(error, (requests.ConnectionError, requests.Timeout)) or time.monotonic() + 0.5 > deadline:
                raise UserError(
                    f"no MLflow server answers at {shown(uri)}; start it, correct MLFLOW_TRACKING_URI,"
                    " or unset it to use mlflow.db in the project's folder."
                ) from error
        if not told:
            say(f"MLflow at {shown(uri)} does not answer yet; waiting up to {timeout:g} seconds")
            told = True
        time.sleep(0.5)


def _unlocked(function: Callable[[], T], timeout: float) -> T:
    """Call a function again and again while another process keeps SQLite's file locked."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return function()
        except OperationalError as error:
            if "database is locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.5)


@contextmanager
def _alone(uri: str, timeout: float) -> Iterator[None]:
    """No other machine opens this database meanwhile: of several that make the tables of an empty one, all fail."""
    if not uri.startswith("postgresql"):
        yield
        return
    engine = create_engine(uri, connect_args={"connect_timeout": max(2, int(timeout))})
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": DATABASE_LOCK})  # until the connection ends
        yield
        connection.invalidate()
    engine.dispose()


def _artifacts(root: Path) -> str:
    chosen = os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT")
    return f"{chosen.rstrip('/')}/{EXPERIMENT}" if chosen else str(root / "mlartifacts" / EXPERIMENT)


def _client(uri: str, timeout: float) -> MlflowClient:
    try:
        with _alone(uri, timeout):
            return MlflowClient(tracking_uri=uri)  # makes the tables of a new store
    except MlflowException:
        if not uri.startswith("sqlite:"):
            raise
        # The store may be that of an older MLflow. A shared database is for its owner to upgrade, this one is ours.
        upgrade.main([uri], standalone_mode=False)
        return MlflowClient(tracking_uri=uri)


def _experiment_id(client: MlflowClient, artifacts: str | None) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        try:
            return client.create_experiment(EXPERIMENT, artifact_location=artifacts)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        experiment = client.get_experiment_by_name(EXPERIMENT)  # another machine was first
    assert experiment is not None
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"the MLflow experiment '{EXPERIMENT}' was deleted; bring it back with"
            f" `mlflow experiments restore --experiment-id {experiment.experiment_id}`."
        )
    if "MLFLOW_DEFAULT_ARTIFACT_ROOT" in os.environ and artifacts not in (None, experiment.artifact_location):
        raise UserError(
            f"this MLflow store keeps its artifacts in {shown(experiment.artifact_location)} and not in"
            f" {shown(str(artifacts))};"
            " unset MLFLOW_DEFAULT_ARTIFACT_ROOT, or begin a new store."
        )
    return experiment.experiment_id
