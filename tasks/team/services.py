"""What infra/compose.yaml describes, moved from containers to one machine's loopback interface.

docker-compose itself reads the file. What differs on one machine: a service's name and the address 0.0.0.0 become
127.0.0.1, the places where volumes and texts are mounted become paths below the state's folder, and the programs are
those of this environment and of Debian's PostgreSQL.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from components.errors import UserError
from tasks.process import programs_path

COMPOSE = Path("infra/compose.yaml")
LOOPBACK = "127.0.0.1"
WORKING_DIRECTORY = "/thaw"  # of Thaw's images
# What the user's own environment says of other servers is none of theirs.
OTHERS = re.compile(r"(MLFLOW|PREFECT|AWS|WEED|POSTGRES|PG|XDG|DVC|THAW)[A-Z0-9]*_|PG[A-Z]+$")


@dataclass(frozen=True)
class Service:
    """One process: what it runs, its settings, files that it needs, its folder, and how to see that it is well.

    folder: where it runs, if that matters. needs: the services that have to be well before it starts. health: a URL
    that answers, or a command that succeeds.
    """

    name: str
    command: list[str]
    environment: dict[str, str]
    files: dict[Path, str]
    folder: Path | None
    needs: list[str]
    health: str | list[str] | None


@dataclass(frozen=True)
class Installation:
    """services: each behind those that it needs. clone: the environment of a clone that works with them."""

    services: list[Service]
    clone: dict[str, str]

    def only(self, names: Collection[str]) -> "Installation":
        """With these services alone; all of them if none is named.

        Raises:
            UserError: there is no such service.
        """
        known = [service.name for service in self.services]
        if unknown := set(names) - set(known):
            raise UserError(f"there is no {', '.join(sorted(unknown))} among the servers: {', '.join(known)}.")
        return replace(self, services=[service for service in self.services if not names or service.name in names])


def read_installation(root: Path, state: Path, settings: Mapping[str, str]) -> Installation:
    """What the project in `root` describes.

    state: the folder of what the services keep. settings: what the compose file asks of its environment file.

    Raises:
        UserError: docker-compose is not there, or refuses the file or the settings.
    """
    content = _resolved(root, settings)
    described: dict[str, Any] = content["services"]
    places = {name: _places(service, state) for name, service in described.items()}
    texts = {name: config["content"] for name, config in content["configs"].items()}
    order = TopologicalSorter({name: service.get("depends_on", {}) for name, service in described.items()})
    services = [_moved(name, described, places[name], texts) for name in order.static_order()]
    clone = {name: _move(value, described, places["proxy"]) for name, value in content["x-clone"].items()}
    return Installation(services, clone)


def environment() -> dict[str, str]:
    """What every process gets beside its own settings."""
    kept = {name: value for name, value in os.environ.items() if not OTHERS.match(name)}
    path = programs_path() + os.pathsep + str(postgres_programs() or "")
    return kept | {"PATH": path.rstrip(os.pathsep), "DO_NOT_TRACK": "1"}


def postgres_programs() -> Path | None:
    """The folder of PostgreSQL's own programs, which Debian keeps off the path; of several versions the newest."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = str(versions[-1]) if versions else shutil.which("initdb")
    return Path(found).parent if found else None


def _resolved(root: Path, settings: Mapping[str, str]) -> Any:
    """The compose file with its variables replaced."""
    command = ["docker-compose", "--file", str(root / COMPOSE), "--env-file", os.devnull, "config", "--format", "json"]
    path = {"PATH": programs_path()}
    done = subprocess.run(command, env=path | dict(settings), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"docker-compose refuses {COMPOSE}: {' '.join(done.stderr.split())}")
    return json.loads(done.stdout.replace("$$", "$"))


def _places(service: Mapping[str, Any], state: Path) -> dict[str, Path]:
    """Where on this machine lies what a container has mounted: a volume, a folder of the host, a text."""
    volumes = {volume["target"]: volume["source"] for volume in service.get("volumes", [])}
    texts = {config["target"]: f"settings/{Path(config['target']).name}" for config in service.get("configs", [])}
    return {target: state / source for target, source in (volumes | texts).items()}


def _move(text: str, services: Iterable[str], places: Mapping[str, Path]) -> str:
    text = re.sub(rf"(?<![\w.-])({'|'.join(services)})(?=:\d)", LOOPBACK, text).replace("0.0.0.0", LOOPBACK)
    for target, place in places.items():
        text = re.sub(rf"(?<![\w./-]){re.escape(target)}(?![\w.-])", str(place), text)
    return text


def _moved(name: str, services: Mapping[str, Any], places: Mapping[str, Path], texts: Mapping[str, str]) -> Service:
    service = services[name]

    def move(text: str) -> str:
        return _move(text, services, places)

    test = [move(word) for word in service.get("healthcheck", {}).get("test", [])][1:]
    return Service(
        name,
        command=[move(word) for word in [*(service["entrypoint"] or []), *service["command"]]],
        environment={setting: move(value) for setting, value in service["environment"].items()},
        files={places[config["target"]]: move(texts[config["source"]]) for config in service.get("configs", [])},
        folder=places.get(WORKING_DIRECTORY),
        needs=list(service.get("depends_on", {})),
        health=next((word for word in test if word.startswith("http://")), test or None),
    )
