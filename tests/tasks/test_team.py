"""The state of a team's installation, and what it refuses before anything is started; tests/infra starts it."""

import re
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.errors import UserError
from tasks.team.services import COMPOSE, read_installation
from tasks.team.state import SETTINGS, open_state, refuse_taken_ports
from tests.conftest import PROJECT


@pytest.fixture
def state() -> Iterator[Path]:
    """A folder that PostgreSQL's user may enter, as pytest's own is not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        yield Path(folder) / "team"


def test_secrets_are_made_once_and_for_their_owner(state: Path):
    made = open_state(state, PROJECT)
    assert stat.S_IMODE((state / SETTINGS).stat().st_mode) == 0o600
    assert open_state(state, PROJECT) == made
    secret = [value for name, value in made.items() if name.endswith(("PASSWORD", "KEY", "LOGIN"))]
    assert len(set(secret)) == 6
    assert all(len(value) >= 48 for value in secret)


def test_a_folder_that_postgresql_cannot_enter_is_refused_to_root(state: Path, monkeypatch: pytest.MonkeyPatch):
    open_state(state, PROJECT)
    state.chmod(0o700)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(UserError, match=f"postgres .* cannot enter {state}: set THAW_TEAM"):
        open_state(state, PROJECT)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    open_state(state, PROJECT)


def test_a_value_that_would_break_a_url_is_refused(state: Path):
    open_state(state, PROJECT)
    with (state / SETTINGS).open("a") as settings:
        settings.write("# MLFLOW_WORKERS=four @ once\nMLFLOW_WORKERS=3\n")
    assert open_state(state, PROJECT)["MLFLOW_WORKERS"] == "3"
    with (state / SETTINGS).open("a") as settings:
        settings.write("STORE_PASSWORD=a@b\n")
    with pytest.raises(UserError, match=r"settings\.env: STORE_PASSWORD is to be of letters"):
        open_state(state, PROJECT)


def test_a_taken_port_and_an_unknown_server_are_refused(state: Path):
    names = re.findall(r"\$\{(\w+_PORT):-", (PROJECT / COMPOSE).read_text())
    settings = open_state(state, PROJECT)
    free = settings | dict.fromkeys(names, "0")  # which is always free
    refuse_taken_ports(PROJECT, free)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(UserError, match=f"port {port} is in use; set STORE_FILER_PORT to a free one"):
            refuse_taken_ports(PROJECT, free | {"STORE_FILER_PORT": port})
    installation = read_installation(PROJECT, state, settings)
    with pytest.raises(UserError, match=r"there is no mlfow among the servers: .*mlflow"):
        installation.only(["mlfow"])
    assert [service.name for service in installation.only(["database"]).services] == ["database"]


def test_a_password_that_is_missing_is_told(state: Path):
    settings = open_state(state, PROJECT)
    with pytest.raises(UserError, match="set STORE_KEY in the environment file"):
        read_installation(PROJECT, state, settings | {"STORE_KEY": ""})
