"""A team's servers in a folder of their own, on free ports, as `thaw team` starts them."""

import json
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import requests

from tasks.team.services import postgres_programs
from tasks.team.state import SETTINGS, open_state
from tests.conftest import PROJECT
from tests.flows.scratch import Scratch, until

DATABASES = ("mlflow", "mlflow_auth", "prefect")


class TeamServers:
    """`thaw team` in a project; started and stopped as often as one likes, on the same state."""

    def __init__(self, project: Scratch) -> None:
        self.project = project
        self.state = _empty_folder()
        usual = re.findall(r"\$\{(\w+_PORT):-", (PROJECT / "infra/compose.yaml").read_text())
        self.ports = dict(zip(sorted(set(usual)), free_ports(len(set(usual))), strict=True))
        open_state(self.state, project.folder)
        with (self.state / SETTINGS).open("a") as settings:
            settings.write("".join(f"{name}={port}\n" for name, port in self.ports.items()) + "MLFLOW_WORKERS=1\n")
        self._process: subprocess.Popen[str] | None = None

    @property
    def settings(self) -> dict[str, str]:
        return open_state(self.state, self.project.folder)

    @property
    def clone(self) -> dict[str, str]:
        """What a clone sources."""
        lines = shlex.split((self.state / "clone.env").read_text().replace("export ", ""))
        return {name: value for name, _, value in (line.partition("=") for line in lines)}

    def session(self, server: str | None = None) -> requests.Session:
        """HTTP as anybody would, or with a clone's login at Prefect."""
        session = requests.Session()
        session.trust_env = False
        if server == "PREFECT":
            session.auth = tuple(self.clone["PREFECT_API_AUTH_STRING"].split(":"))
            session.verify = self.clone["PREFECT_API_SSL_CERT_FILE"]
        return session

    @property
    def family(self) -> list[psutil.Process]:
        assert self._process is not None
        return psutil.Process(self._process.pid).children(recursive=True)

    def start(self, *only: str) -> None:
        log = self.project.folder.with_suffix(".log")
        log.write_text("")
        self._process = self.project.start(
            "env", f"THAW_TEAM={self.state}", "thaw", "team", *(f"--only={name}" for name in only)
        )
        until(lambda: self._process.poll() is not None or "Running" in log.read_text(), 240, 0.2)
        assert self._process.poll() is None, log.read_text() + self._last_words()

    def postgres(self, program: str, *arguments: str) -> None:
        """One of PostgreSQL's own programs, as infra/README.md shows it."""
        folder = postgres_programs()
        assert folder is not None
        command = [folder / program, "--host=127.0.0.1", f"--port={self.ports['DATABASE_PORT']}", "--username=thaw"]
        login = {"PGPASSWORD": self.settings["DATABASE_PASSWORD"]}
        subprocess.run([*command, *arguments], env=login, check=True)

    def move(self, folder: Path) -> None:
        """Back everything up into a folder, lose it, and restore it in another place, by infra/README.md's commands."""
        link, dumps = folder / "team", {name: f"{folder}/{name}.dump" for name in DATABASES}
        link.symlink_to(self.state)
        self.start("database")
        for name, dump in dumps.items():
            self.postgres("pg_dump", "--format=custom", f"--file={dump}", name)
        self.stop()
        subprocess.run(documented("tar --create"), shell=True, cwd=folder, check=True)
        shutil.rmtree(self.state)
        self.state = _empty_folder()
        link.unlink()
        link.symlink_to(self.state)
        subprocess.run(documented("tar --extract"), shell=True, cwd=folder, check=True)
        self.start("database")
        for name, dump in dumps.items():
            self.postgres("pg_restore", f"--dbname={name}", dump)
        self.stop()

    def stop(self) -> None:
        """Ctrl-C."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(120)
        self._process = None

    def kill(self) -> list[psutil.Process]:
        """As a machine does that has no memory left; what is left of it."""
        if self._process is None:
            return []
        family = self.family
        self._process.kill()
        self._process.wait()
        self._process = None
        return psutil.wait_procs(family, 30)[1]

    def remove(self) -> None:
        left = self.kill()
        shutil.rmtree(self.state)
        assert left == []

    def _last_words(self) -> str:
        return "".join(f"{log.name}: {log.read_text()[-1500:]}\n" for log in (self.state / "log").glob("*.log"))


def documented(start: str) -> str:
    """The command of infra/README.md with these first words, up to the end of what it quotes."""
    readme = (PROJECT / "infra/README.md").read_text()
    [found] = re.findall(rf"^    (?:mkdir .* && )?({re.escape(start)}[^'\n]*(?:'[^']*')?)", readme, re.MULTILINE)
    return found.replace("\n    ", "\n")


def _empty_folder() -> Path:
    """With a short name, and outside of what only root may enter."""
    folder = Path(tempfile.mkdtemp(prefix="thaw-team-"))
    folder.chmod(0o711)
    return folder


def free_ports(number: int) -> list[int]:
    """Each with the port 10000 above it, which the store takes too; below those that the system deals out."""
    found: list[int] = []
    for port in random.sample(range(10_000, 20_000), 1000):
        if len(found) < number and all(map(_free, (port, port + 10_000))):
            found.append(port)
    return found


def _free(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False


def resolved(settings: Mapping[str, str]) -> Any:
    """What docker-compose makes of the compose file."""
    command = [str(Path(sys.executable).with_name("docker-compose")), "--file", str(PROJECT / "infra/compose.yaml")]
    done = subprocess.run([*command, "config", "--format", "json"], env=dict(settings), capture_output=True, check=True)
    return json.loads(done.stdout.replace(b"$$", b"$"))
