"""A real PostgreSQL server with a cluster of its own, on a free port of the loopback interface."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg2

from tests.debian import program

USER = "postgres"  # whom Debian's package makes; the server refuses to be run by root


class Postgres:
    """The running server; leaves nothing behind after `stop`."""

    def __init__(self) -> None:
        found = programs()
        root = os.geteuid() == 0
        self._as: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": []} if root else {}
        self._folder = Path(tempfile.mkdtemp(prefix="thaw-postgres-"))  # a path that the server's user may enter
        self._user = USER if root else getpass.getuser()
        if root:
            shutil.chown(self._folder, USER, USER)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        data, quiet = str(self._folder / "data"), {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        subprocess.run(
            [found / "initdb", "--pgdata", data, "--auth=trust", "--no-sync", "--username", self._user],
            check=True, cwd=self._folder, **self._as, **quiet,
        )  # fmt: skip
        command = [found / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(self.port), "-k", self._folder]
        command += ["-c", "fsync=off"]
        with (self._folder / "log").open("w") as log:
            self._process = subprocess.Popen(command, cwd=self._folder, stdout=log, stderr=log, **self._as)
        self._connect_at_last()

    def database(self, name: str, driver: str = "postgresql") -> str:
        """Make an empty database; its URI."""
        connection = self._connect()
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f'CREATE DATABASE "{name}"')
        connection.close()
        return f"{driver}://{self._user}@127.0.0.1:{self.port}/{name}"

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)  # its clients are cut off
        self._process.wait(60)
        shutil.rmtree(self._folder)

    def _connect(self) -> Any:
        return psycopg2.connect(host="127.0.0.1", port=self.port, user=self._user, dbname="postgres")

    def _connect_at_last(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                self._connect().close()
                return
            except psycopg2.OperationalError:
                assert self._process.poll() is None, (self._folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)


def programs() -> Path:
    """The folder of the server's programs."""
    return program(_installed, "postgresql")


def _installed() -> Path | None:
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    places = [*sorted(versions, key=lambda path: int(path.parts[-3])), Path(shutil.which("initdb") or "/nowhere")]
    return next((path.parent for path in reversed(places) if path.is_file()), None)
