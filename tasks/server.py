"""A Prefect server of this machine's own, for as long as it is needed; it ends with the process that started it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from filelock import FileLock

from components.errors import UserError
from tasks.process import end_guarded, start_guarded

START_SECONDS = 120
REST_SECONDS = 10
LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"


def configured_server() -> str | None:
    """The API of the server that PREFECT_API_URL, or Prefect's own settings, name."""
    from prefect.settings import PREFECT_API_URL

    return PREFECT_API_URL.value()


@contextmanager
def own_server(port: int | None = None, *, ui: bool = False, host: str = LOOPBACK) -> Iterator[str]:
    """Run a server on Prefect's database of this user; yields the URL of its API.

    Prefect would start one by itself, but leave it behind when the flow is killed.

    port: a free one by default. host: the address that it listens on.

    Raises:
        UserError: it does not start, or everybody could reach it.
    """
    from prefect.settings import PREFECT_HOME

    _refuse_open(host)
    port = port or _free_port()
    url = f"http://{LOOPBACK if host == EVERYWHERE else host}:{port}/api"
    home = Path(str(PREFECT_HOME.value()))
    home.mkdir(parents=True, exist_ok=True)
    log = home / "thaw-server.log"
    with FileLock(home / "thaw-server.lock"), log.open("w") as out:  # two at once would both make the database
        process = start_guarded(
            f"exec '{sys.executable}' -m prefect server start --host {host} --port {port}{'' if ui else ' --no-ui'}",
            env=os.environ | {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_API_URL": url},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait(url, process, log)
        except BaseException:
            end_guarded(process)
            raise
    try:
        yield url
    finally:
        _say_the_rest()
        end_guarded(process)


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


def _wait(url: str, process: "subprocess.Popen[str]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if requests.get(f"{url}/health", timeout=5).ok:
                return
        except requests.RequestException:
            time.sleep(0.1)
    raise UserError(f"Prefect's server does not start; {log} says why.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
