"""A Prefect server of this machine's own, for as long as it is needed; it ends with the process that started it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TextIO

import httpx
import requests
from filelock import FileLock

from components.addresses import free_port, postgres_trouble, shown
from components.errors import Refused, TemporaryError, UserError
from tasks.kept import Kept
from tasks.ports import listens, refuse_taken
from tasks.process import Process, start_guarded

START_SECONDS = 300  # a busy machine, and a database to be made
REST_SECONDS = 10
ANSWER_SECONDS = 20
DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"
# Of every own server, where the environment says nothing else.
USUAL = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # Which run holds a deployment's only place, for one in memory a run loses it, and is ended, when the server dies.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
}


def configured_server() -> str | None:
    """The API of the server that PREFECT_API_URL, or Prefect's own settings, name; it has just answered.

    Raises:
        UserError: it does not answer, or refuses to.
    """
    from prefect.settings import PREFECT_API_URL

    if (url := PREFECT_API_URL.value()) is not None:
        _check_server(url)
    return url


def _check_server(url: str) -> None:
    """Ask it once for what only who is let in gets: Prefect's own flows would try for a minute, and then say little."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    quick = {PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: ANSWER_SECONDS}
    try:
        with temporary_settings(quick), get_client(sync_client=True) as client:
            client.read_flows(limit=1)
    except httpx.HTTPStatusError as error:
        raise _refusal(url, error.response.status_code) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError(
            f"no Prefect server answers at {shown(url)}; start it, correct PREFECT_API_URL, or unset it: a sweep then"
            f" starts one for itself. ({shown(str(error)) or type(error).__name__})"
        ) from error
    except (ValueError, KeyError, TypeError) as error:  # what no API of Prefect's says
        raise _refusal(url, None) from error


@contextmanager
def told_when_gone(url: str) -> Iterator[None]:
    """A server that goes away while a flow runs, for longer than Prefect bears with it, is told in a sentence.

    Raises:
        TemporaryError: it went away.
    """
    try:
        yield
    except (httpx.TransportError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "Failed to reach API" not in str(error):
            raise
        raise TemporaryError(
            f"the Prefect server at {shown(url)} has gone away; start it anew and run this again, what is built is"
            f" kept. ({shown(str(error)) or type(error).__name__})"
        ) from error


def _refusal(url: str, status: int | None) -> UserError:
    if status in (401, 403):
        return Refused(
            f"the Prefect server at {shown(url)} refuses the credentials ({status}); set PREFECT_API_AUTH_STRING to"
            " USER:PASSWORD, or PREFECT_API_KEY for Prefect Cloud."
        )
    if status is not None and status >= 500:
        return UserError(
            f"the Prefect server at {shown(url)} fails ({status}); its log says why: mend it, and try again."
        )
    return UserError(f"what answers at {shown(url)} is no API of Prefect; correct PREFECT_API_URL, it ends in /api.")


@contextmanager
def own_server(port: int | None = None, *, ui: bool = False, host: str = LOOPBACK) -> Iterator[tuple[str, Kept]]:
    """Run a server on Prefect's database of this user; yields the URL of its API, and the server to be looked after.

    Prefect would start one by itself, but leave it behind when the flow is killed.

    port: a free one by default. host: the address that it listens on.

    Raises:
        UserError: it does not start, its port is taken, its database does not answer, or everybody could reach it.
    """
    from prefect.settings import PREFECT_HOME

    _refuse_open(host)
    check_database()
    port = port or free_port(LOOPBACK)
    url = f"http://{LOOPBACK if host == EVERYWHERE else host}:{port}/api"
    home = Path(str(PREFECT_HOME.value()))
    home.mkdir(parents=True, exist_ok=True)
    path = home / "thaw-server.log"
    with path.open("w") as log:
        with FileLock(home / "thaw-server.lock"):  # two at once would both make the database
            refuse_taken(host, port, url)
            server = Kept("Prefect's server", partial(_start, host, port, ui, url, log), log=path)
            try:
                _wait(url, port, server, path)
            except BaseException:
                server.end()
                raise
        try:
            yield url, server
        finally:
            _say_the_rest()
            server.end()


def _start(host: str, port: int, ui: bool, url: str, log: TextIO) -> Process:
    return start_guarded(
        f"exec '{sys.executable}' -m prefect server start --host {host} --port {port}{'' if ui else ' --no-ui'}",
        env=USUAL | os.environ | {"PREFECT_API_URL": url},
        stdout=log,
        stderr=subprocess.STDOUT,
    )


def check_database() -> None:
    """Whether PostgreSQL answers, where Prefect's settings name one; else only a server's log would tell.

    Raises:
        UserError: it does not.
    """
    import psycopg2
    from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL

    uri = PREFECT_SERVER_DATABASE_CONNECTION_URL.value() or ""
    if not uri.startswith("postgresql"):
        return
    scheme, rest = uri.split("://", 1)
    try:
        psycopg2.connect(f"{scheme.partition('+')[0]}://{rest}", connect_timeout=ANSWER_SECONDS).close()
    except psycopg2.OperationalError as error:
        raise postgres_trouble(uri, error, DATABASE) from error


def _refuse_open(host: str) -> None:
    """Whoever reaches a server without a login starts runs on this machine."""
    from prefect.settings import PREFECT_SERVER_API_AUTH_STRING

    if host != LOOPBACK and not PREFECT_SERVER_API_AUTH_STRING.value():
        raise UserError(
            f"Prefect's server would listen on {host}, and everybody who reaches it could run things here: set"
            " PREFECT_SERVER_API_AUTH_STRING and PREFECT_API_AUTH_STRING to USER:PASSWORD, or leave the host out."
        )


def _say_the_rest() -> None:
    """Send what Prefect has queued for the server; when that is gone it would try again for a minute."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for queue in (APILogWorker, EventsWorker):
        queue.drain_all(timeout=REST_SECONDS)


def _wait(url: str, port: int, server: Kept, log: Path) -> None:
    """Until it answers; another one that answers in its place, since it had the port a moment earlier, is none."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.runs():
        try:
            if requests.get(f"{url}/health", timeout=5).ok and listens(server.pid, port):
                return
        except requests.RequestException:
            pass
        time.sleep(0.1)
    raise UserError(f"Prefect's server does not start; {log} says why.")
