"""Prefect's server of this machine's own: who can reach it, whose port it is, and what becomes of it when it dies."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from components.errors import UserError
from flows.serve import serve
from tasks import kept
from tasks.kept import Kept
from tasks.process import start_guarded
from tasks.server import _wait, own_server
from tests.answers import answering, dead_port
from tests.flows.scratch import until


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with temporary_settings({PREFECT_HOME: tmp_path}):
        yield tmp_path


def test_a_server_that_others_can_reach_needs_a_login(monkeypatch: pytest.MonkeyPatch):
    for name in ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    for host in ("0.0.0.0", "192.0.2.1", "::"):
        with pytest.raises(UserError, match="PREFECT_SERVER_API_AUTH_STRING"), own_server(host=host):
            pass
        with pytest.raises(UserError, match="PREFECT_SERVER_API_AUTH_STRING"):
            serve(host=host)


@pytest.mark.usefixtures("home")
def test_who_has_the_port_is_named():
    with answering(200, "[]") as port:
        told = rf"^port {port} is taken by process {os.getpid()}, .*; end it, or take another port with --port\.$"
        with pytest.raises(UserError, match=told), own_server(port):
            pass


def test_a_server_that_was_quicker_to_take_the_port_is_not_taken_for_ours():
    """It answers as Prefect's does, while ours is still about to start."""
    with answering(200, "true") as port:
        ours = Kept("ours", lambda: start_guarded("sleep 0.3"))
        try:
            with pytest.raises(UserError, match=r"^Prefect's server does not start; log says why\.$"):
                _wait(f"http://127.0.0.1:{port}/api", port, ours, Path("log"))
        finally:
            ours.end()


@pytest.mark.slow
def test_a_server_that_dies_is_started_anew_and_runs_keep_what_they_hold(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept, "FIRST_PAUSE", 0.02)
    port = dead_port()
    with own_server(port) as (url, server), temporary_settings({PREFECT_API_URL: url}):
        told = f"^another Prefect server listens on port {port}: process .*API_URL={url}"
        with pytest.raises(UserError, match=told), own_server(port):
            pass
        with get_client(sync_client=True) as client:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="place", limit=1))
            taken = client.increment_concurrency_slots_with_lease(["place"], 1, "concurrency", 300).json()
            [ours] = psutil.Process(server.pid).children()
            ours.kill()
            until(server.look, 30)
            # The client tries again until the new one answers.
            client.renew_concurrency_lease(taken["lease_id"], 300)
            assert client.read_global_concurrency_limit_by_name("place").active_slots == 1
            client.release_concurrency_slots_with_lease(taken["lease_id"])
            assert client.read_global_concurrency_limit_by_name("place").active_slots == 0
    assert not psutil.pid_exists(server.pid)
    assert not re.search("Traceback", (home / "thaw-server.log").read_text())
