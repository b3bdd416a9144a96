"""A team's installation while it runs: supervisor keeps its processes, and all end together."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import requests
from filelock import FileLock, Timeout
from supervisor.xmlrpc import SupervisorTransport

from components.errors import UserError
from tasks.process import Process, end_guarded, start_guarded
from tasks.team.services import LOOPBACK, Installation, Service, environment, postgres_programs, read_installation
from tasks.team.state import DATABASE_USER, open_state, refuse_taken_ports, store_certificate, write_clone, write_secret

START_SECONDS = 180
STOP_SECONDS = 60
SUPERVISOR = """
[unix_http_server]
file = {state}/supervisor.socket
chmod = 0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[supervisord]
logfile = {state}/log/supervisor.log
pidfile = {state}/supervisor.pid
childlogdir = {state}/log
"""
PROGRAM = """
[program:{name}]
command = {command}
directory = {folder}
environment = {environment}
autostart = false
autorestart = true
priority = {place}
startsecs = 1
stopsignal = {stop}
stopasgroup = {group}
killasgroup = true
umask = {umask}
stopwaitsecs = {seconds}
redirect_stderr = true
stdout_logfile = {state}/log/{name}.log
stdout_logfile_maxbytes = 20MB
stdout_logfile_backups = 3
{user}
"""


class Team:
    """A running installation. clone: the file that a clone sources to work with it."""

    def __init__(self, state: Path, clone: Path, process: Process, services: list[Service]) -> None:
        self.clone = clone
        self._state, self._process, self._services = state, process, services

    def watch(self) -> None:
        """Wait for as long as all goes well; a process that dies is started again.

        Raises:
            UserError: one does not start any more.
        """
        while True:
            for service in self._services:
                self._refuse_failed(service)
            time.sleep(2)

    def start(self) -> None:
        """Start every service as soon as those that it needs are well, and wait until all are."""
        by_name = {service.name: service for service in self._services}
        for service in self._services:
            for needed in by_name.keys() & service.needs:
                self._wait(by_name[needed])
            self._ask("startProcess", service.name, False)
            if service.name == "database":
                self._wait(service)
                _make_databases(service)
        for service in self._services:
            self._wait(service)

    def _wait(self, service: Service) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not _well(service):
            self._refuse_failed(service)
            if time.monotonic() > deadline:
                raise UserError(f"{service.name} is not well after {START_SECONDS} seconds; {self._log(service)}.")
            time.sleep(0.2)

    def stop(self) -> None:
        """Stop the services, the last one first, as each of them wishes to be."""
        with suppress(OSError, xmlrpc.client.Error):
            self._ask("shutdown")
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(len(self._services) * STOP_SECONDS)

    def _refuse_failed(self, service: Service) -> None:
        try:
            found = self._ask("getProcessInfo", service.name)
        except OSError:
            raise UserError(f"supervisor has ended; {self._state}/log/supervisor.log says why.") from None
        if found["statename"] in ("FATAL", "UNKNOWN"):
            raise UserError(f"{service.name} does not start; {self._log(service)}.")

    def _log(self, service: Service) -> str:
        return f"{self._state}/log/{service.name}.log says why"

    def _ask(self, method: str, *arguments: Any) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self._state}/supervisor.socket")
        with xmlrpc.client.ServerProxy(f"http://{LOOPBACK}", transport=transport) as server:
            return getattr(server.supervisor, method)(*arguments)


@contextmanager
def running(root: Path, state: Path, only: Collection[str] = ()) -> Iterator[Team]:
    """Start the servers of the project in `root`, on what an earlier start has left in `state`; end them behind.

    only: the names of those that are wanted; all by default.

    Raises:
        UserError: there is no such server, one does not start, a port is taken, PostgreSQL is not installed, or the
            installation runs already.
    """
    settings = open_state(state, root)
    with _alone(state):
        refuse_taken_ports(root, settings)
        installation = read_installation(root, state, settings).only(only)
        clone = write_clone(state, installation.clone)
        _prepare(state, installation)
        command = shlex.join([sys.executable, "-m", "supervisor.supervisord", "-n", "-c", f"{state}/supervisor.conf"])
        process = start_guarded(f"exec {command}", cwd=state, env=environment(), stdout=subprocess.DEVNULL)
        team = Team(state, clone, process, installation.services)
        try:
            while not (state / "supervisor.socket").exists() and process.poll() is None:
                time.sleep(0.05)
            team.start()
            yield team
        finally:
            team.stop()
            end_guarded(process)


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    lock = FileLock(state / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"the installation in {state} is running already.") from None
    try:
        yield
    finally:
        lock.release()


def _prepare(state: Path, installation: Installation) -> None:
    """Everything that the processes find when they start."""
    (state / "supervisor.socket").unlink(missing_ok=True)
    for folder in ("log", "proxy", "store"):
        (state / folder).mkdir(exist_ok=True)
    programs = [SUPERVISOR.format(state=state)]
    for place, service in enumerate(installation.services):
        for path, text in service.files.items():
            write_secret(path, text)
        programs.append(_program(service, state, place))
        if service.name == "database":
            _make_database(state / "database", service)
    write_secret(state / "supervisor.conf", "".join(programs))


def _program(service: Service, state: Path, place: int) -> str:
    """A section of supervisor's settings, in which a percent sign stands twice; the last place is stopped first."""
    command, settings, user = service.command, service.environment, ""
    if service.name == "database":
        command = [command[0], "-D", f"{state}/database", "-h", LOOPBACK, "-k", "", *command[1:]]
        user = f"user = {DATABASE_USER}" if os.geteuid() == 0 else ""
    elif service.name == "store":
        settings = settings | store_certificate(state)
    elif service.name == "prefect":
        settings = settings | {"PREFECT_HOME": f"{state}/prefect"}
    own = service.name in ("database", "worker")  # these two end what they have started by themselves
    return PROGRAM.format(
        name=service.name, state=state, user=user, place=place, seconds=STOP_SECONDS, folder=service.folder or state,
        command=shlex.join(command).replace("%", "%%"), stop="INT" if service.name == "database" else "TERM",
        environment=",".join(f'{name}="{value}"' for name, value in settings.items()).replace("%", "%%"),
        group="false" if own else "true", umask="022" if service.name == "worker" else "077",
    )  # fmt: skip


def _well(service: Service) -> bool:
    """Whether it says that it is well; one that says nothing is."""
    if isinstance(service.health, str):
        try:
            return requests.get(service.health, timeout=5).ok
        except requests.RequestException:
            return False
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return not service.health or subprocess.run(service.health, env=environment(), check=False, **quiet).returncode == 0


def _make_database(folder: Path, service: Service) -> None:
    """A cluster, as PostgreSQL's image makes it; one that is there stays as it is."""
    programs = postgres_programs()
    if programs is None:
        raise UserError(
            "a team's servers need PostgreSQL (Debian: apt-get install postgresql), which is not installed."
        )
    if (folder / "PG_VERSION").exists():
        return
    root = os.geteuid() == 0
    settings = service.environment
    folder.mkdir(mode=0o700, exist_ok=True)
    with tempfile.NamedTemporaryFile("w") as password:
        password.write(settings["POSTGRES_PASSWORD"])
        password.flush()
        if root:
            for path in (folder, password.name):
                shutil.chown(path, DATABASE_USER, DATABASE_USER)
        command = [programs / "initdb", "--pgdata", folder, "--username", settings["POSTGRES_USER"]]
        command += ["--pwfile", password.name, "--encoding", "UTF8", *shlex.split(settings["POSTGRES_INITDB_ARGS"])]
        who: dict[str, Any] = {"user": DATABASE_USER, "group": DATABASE_USER, "extra_groups": []} if root else {}
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, **who)
    if done.returncode != 0:
        raise UserError(f"initdb failed: {' '.join(done.stderr.split())}")


def _make_databases(service: Service) -> None:
    """The databases that are missing in a cluster that runs: the image's own, and those of the texts beside it."""
    import psycopg2

    settings, port = service.environment, service.command[service.command.index("-p") + 1]
    statements = [f"CREATE DATABASE {settings['POSTGRES_DB']}", *"".join(service.files.values()).split(";")]
    login = {"user": settings["POSTGRES_USER"], "password": settings["POSTGRES_PASSWORD"]}
    connection = psycopg2.connect(host=LOOPBACK, port=port, dbname="postgres", **login)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for statement in filter(str.strip, statements):
            with suppress(psycopg2.errors.DuplicateDatabase):
                cursor.execute(statement)
    connection.close()
