"""Prefect's server of this machine's own: who can reach it."""

import pytest

from components.errors import UserError
from flows.serve import serve
from tasks.server import own_server


def test_a_server_that_others_can_reach_needs_a_login(monkeypatch: pytest.MonkeyPatch):
    for name in ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    for host in ("0.0.0.0", "192.0.2.1", "::"):
        with pytest.raises(UserError, match="PREFECT_SERVER_API_AUTH_STRING"), own_server(host=host):
            pass
        with pytest.raises(UserError, match="PREFECT_SERVER_API_AUTH_STRING"):
            serve(host=host)
