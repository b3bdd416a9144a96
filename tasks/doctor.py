"""All checks of `thaw doctor`, one after the other, each with a limit of time; none changes anything."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from tasks import machine_checks, project_checks, service_checks
from tasks.finding import Finding, Status, found

LIMIT_SECONDS = 60.0  # of one check; a package's first import on a cold disk takes some of them


def examine(root: Path, *, disk: float, memory: float, port: int) -> Iterator[tuple[str, Finding]]:
    """What every check finds, by its name.

    root: the project's folder. disk, memory: GB that have to be free. port: of Prefect's UI.
    """
    for name, check in _of_the_machine(root, disk, memory, port).items():
        yield name, found(check, LIMIT_SECONDS)
    project = found(partial(project_checks.project, root), LIMIT_SECONDS)
    yield "project", project
    if project.status is Status.OK:
        for name, check in _of_the_project(root).items():
            yield name, found(check, LIMIT_SECONDS)
    for name, check in _of_services(root).items():
        yield name, found(check, LIMIT_SECONDS)


def _of_the_machine(root: Path, disk: float, memory: float, port: int) -> Mapping[str, Callable[[], Finding]]:
    ports = {port: "thaw serve --port {}", 5000: "mlflow ui --port {}"}
    return {
        "python": machine_checks.python,
        "packages": machine_checks.packages,
        "program": partial(machine_checks.program, root),
        "pytorch": machine_checks.pytorch,
        "gpu": machine_checks.gpu,
        "disk": partial(machine_checks.disk, machine_checks.places(root), disk),
        "memory": partial(machine_checks.memory, memory),
        "shared memory": machine_checks.shared_memory,
        "ports": partial(machine_checks.ports, ports),
    }


def _of_the_project(root: Path) -> Mapping[str, Callable[[], Finding]]:
    return {
        "settings": partial(project_checks.settings, root),
        "git": partial(project_checks.git, root),
        "data": partial(project_checks.data, root),
        "dvc remotes": partial(project_checks.remotes, root),
        "leftovers": partial(project_checks.leftovers, root),
        "vllm": lambda: service_checks.vllm(project_checks.load(root).rollout.urls),
    }


def _of_services(root: Path) -> Mapping[str, Callable[[], Finding]]:
    return {
        "mlflow": partial(service_checks.mlflow, root),
        "prefect": service_checks.prefect,
        "lost runs": service_checks.lost_runs,
    }
