"""One machine as the whole installation: a Prefect server, the deployments of prefect.yaml, and workers."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

import httpx
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import PREFECT_API_URL, temporary_settings

from components.errors import UserError
from components.job import working_on
from tasks.kept import Kept
from tasks.lost_runs import mark_lost_runs
from tasks.process import Process, programs_path, start_guarded, visible_gpus
from tasks.server import LOOPBACK, configured_server, own_server, told_when_gone
from tasks.status import SERVE
from tasks.workspace import project_root

AUTOMATIONS = Path("infra/automations.yaml")
PORT = 4200


@contextmanager
def with_server(
    port: int | None = None, *, ui: bool = False, host: str = LOOPBACK
) -> Iterator[tuple[str, Kept | None]]:
    """Flows inside run against the configured Prefect server, or against one for just as long.

    Yields its API's URL, and the server if it is our own.
    """
    if (url := configured_server()) is not None:
        with told_when_gone(url):
            mark_lost_runs()
            yield url, None
        return
    with (
        own_server(port, ui=ui, host=host) as (url, server),
        temporary_settings({PREFECT_API_URL: url}),
        told_when_gone(url),
    ):
        mark_lost_runs()
        yield url, server


def serve(port: int = PORT, host: str = LOOPBACK) -> None:
    """Serve the deployments of prefect.yaml until interrupted: make what they need, deploy them, work on their runs.

    port, host: of the server, where none is configured.

    Raises:
        UserError: Prefect refuses a deployment, a worker or the server ends again and again, the server's port is
            taken, or everybody could reach it.
    """
    root = project_root()
    with with_server(port, ui=True, host=host) as (url, server), working_on(SERVE, root, name=SERVE, said=url):
        pools = work_pools(root)
        set_up(root)
        _prefect(root, "--no-prompt", "deploy", "--all")
        print(f"Prefect's UI: {url.removesuffix('/api')}; ctrl-C ends everything.", flush=True)
        mine = [pool for pool in pools if "gpu" not in pool or visible_gpus()]
        workers = [Kept(f"the worker of {pool}", partial(_worker, root, pool)) for pool in mine]
        try:
            look_after([*([server] if server else []), *workers])
        finally:
            for worker in workers:
                worker.end()


def look_after(processes: list[Kept], every: float = 1.0) -> NoReturn:
    """Keep them running; runs that ended with one of them are marked as soon as the server answers."""
    lost = False
    while True:
        for process in processes:
            lost = process.look() or lost
        if lost:
            with suppress(httpx.HTTPError):  # it is away just now
                mark_lost_runs()
                lost = False
        time.sleep(every)


def set_up(root: Path) -> None:
    """Make the work pools and automations that are missing; what exists is left as it is."""
    with get_client(sync_client=True) as client:
        for pool in work_pools(root):
            with suppress(ObjectAlreadyExists):
                # One run at a time has the GPUs; elsewhere a late run has to start in order to be cancelled.
                limit = 1 if "gpu" in pool else None
                client.create_work_pool(WorkPoolCreate(name=pool, type="process", concurrency_limit=limit))
        for content in yaml.safe_load((root / AUTOMATIONS).read_text(encoding="utf-8"))["automations"]:
            if not client.read_automations_by_name(content["name"]):
                client.create_automation(AutomationCore.model_validate(content))


def work_pools(root: Path) -> list[str]:
    """The work pools that prefect.yaml names."""
    deployments = yaml.safe_load((root / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    return list(dict.fromkeys(deployment["work_pool"]["name"] for deployment in deployments))


def _prefect(root: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "prefect", *arguments]
    done = subprocess.run(command, cwd=root, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"`prefect {' '.join(arguments)}` failed: {' '.join((done.stderr or done.stdout).split())}")


def _worker(root: Path, pool: str) -> Process:
    command = shlex.join([sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"])
    return start_guarded(f"exec {command}", cwd=root, env=_environment())


def _environment() -> dict[str, str]:
    return os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PATH": programs_path()}
