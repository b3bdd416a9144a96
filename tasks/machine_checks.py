"""Checks of this machine for `thaw doctor`: Python and packages, PyTorch and GPUs, room, ports.

Each imports what it needs itself, so that one broken package spoils one check.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from pathlib import Path

from tasks.finding import Finding, fault, ok, warning, worst

PROGRAM = Path(__file__).resolve().parent.parent
SHARED_MEMORY = Path("/dev/shm")
GB = 1e9


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Whether this Python is one that Thaw runs on, in an environment of its own."""
    shown = ".".join(map(str, version))
    if not (3, 11) <= version[:2] <= (3, 13):
        return fault(f"Python {shown}; Thaw needs 3.11 to 3.13.", "make setup PYTHON=python3.12")
    return ok(f"Python {shown} in {sys.prefix}.")


def stack() -> str:
    """Which of the requirement files was installed: vLLM is the package that tells them apart."""
    return "gpu" if "vllm" in _installed() else "cpu"


def packages(requirements: Path | None = None, project: Path = PROGRAM / "pyproject.toml") -> Finding:
    """Whether what Thaw needs is installed (else a fault), in the versions that were tested together.

    requirements: the file with these; that of the installed stack by default.
    """
    from packaging.requirements import Requirement
    from packaging.version import Version

    requirements = requirements or PROGRAM / "requirements" / f"{stack()}.txt"
    installed, cure = _installed(), f"make setup STACK={requirements.stem}"
    content = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    needed = [*content["dependencies"], *content["optional-dependencies"].get(requirements.stem, [])]
    lacking = []
    for requirement in map(Requirement, needed):
        version = installed.get(_name(requirement.name))
        if version is None:
            lacking.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            lacking.append(f"{requirement} is needed and {version} installed")
    if lacking:
        return fault(f"{_some(lacking)}.", cure)
    pins = dict(line.split("==") for line in requirements.read_text(encoding="utf-8").split() if "==" in line)
    other = [
        f"{name} {installed.get(_name(name), 'none')} (tested: {pin})"
        for name, pin in pins.items()
        if _name(name) not in installed or Version(installed[_name(name)]).public != Version(pin).public
    ]
    if other:
        return warning(f"not the versions that were tested together: {_some(other)}.", cure)
    return ok(f"the {len(pins)} versions of {requirements.parent.name}/{requirements.name}.")


def program(root: Path) -> Finding:
    """Whether the program that runs is that of this project, whose files DVC tracks."""
    if (root / "tasks").is_dir() and root.resolve() != PROGRAM:
        return warning(f"{PROGRAM} runs, and DVC tracks the code of {root}.", "source .venv/bin/activate")
    return ok(f"{PROGRAM} runs.")


def pytorch() -> Finding:
    """Whether PyTorch can be imported and calculates."""
    try:
        import torch

        two = float(torch.ones(2) @ torch.ones(2))
    except Exception as error:  # a broken build raises all kinds
        told = " ".join(str(error).split())[:200].rstrip(".")
        return fault(f"PyTorch is broken: {type(error).__name__}: {told}.", f"make setup STACK={stack()}")
    if two != 2:
        return fault(f"PyTorch {torch.__version__} says that 1 + 1 = {two:g}.", f"make setup STACK={stack()}")
    return ok(f"PyTorch {torch.__version__} works.")


def gpu() -> Finding:
    """Whether PyTorch can use the GPUs that the driver knows, and whether they are free."""
    import torch

    cards = driver()
    if not torch.cuda.is_available():
        return _without_gpu(cards, built_for=torch.version.cuda, hidden=os.environ.get("CUDA_VISIBLE_DEVICES"))
    names, taken = [], []
    for number in range(torch.cuda.device_count()):
        torch.ones(1, device=f"cuda:{number}").item()
        free, total = torch.cuda.mem_get_info(number)
        names.append(f"{torch.cuda.get_device_name(number)} ({free / GB:.0f} of {total / GB:.0f} GB free)")
        taken += [str(number)] if free < 0.9 * total else []
    told = f"{', '.join(names)}; CUDA {torch.version.cuda}{f', driver {cards[0][1]}' if cards else ''}."
    if taken:
        return warning(f"somebody else uses GPU {', '.join(taken)}: {told}", "nvidia-smi")
    return ok(told)


def _without_gpu(cards: list[tuple[str, str]], built_for: str | None, hidden: str | None) -> Finding:
    """What it means that PyTorch finds none. built_for: which CUDA. hidden: CUDA_VISIBLE_DEVICES."""
    if not cards:
        if built_for is not None:
            return warning(f"PyTorch is built for CUDA {built_for} and finds no GPU.", "make setup STACK=cpu")
        return ok("no GPU; everything runs on the CPU.")
    name, version = cards[0]
    if built_for is None:
        return warning(f"{name} is there, and PyTorch is built for CPUs.", "make setup STACK=gpu")
    if hidden is not None and not hidden.strip("- 1"):
        return warning(f"CUDA_VISIBLE_DEVICES={hidden} hides {name}.", "unset CUDA_VISIBLE_DEVICES")
    told = f"PyTorch, built for CUDA {built_for}, cannot use {name} with driver {version}{_why_not()}."
    return fault(told, "install a driver for this CUDA; nvidia-smi shows the present one")


def _why_not() -> str:
    """What CUDA says when it is asked for."""
    import torch

    try:
        torch.cuda.init()
    except Exception as error:
        return f" ({' '.join(str(error).split())[:200]})"
    return ""


def driver() -> list[tuple[str, str]]:
    """Name and driver of every GPU that nvidia-smi knows."""
    if shutil.which("nvidia-smi") is None:
        return []
    ask = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    said = subprocess.run(ask, capture_output=True, text=True, check=False, timeout=10)
    rows = [line.split(", ") for line in said.stdout.splitlines()] if said.returncode == 0 else []
    return [(row[0], row[1]) for row in rows if len(row) == 2]


def disk(folders: Iterable[Path], least: float) -> Finding:
    """Whether there is room for files in each of these folders. least: GB."""
    free = {folder: shutil.disk_usage(folder).free / GB for folder in folders if folder.is_dir()}
    short = [f"{folder} has {room:.1f} GB free" for folder, room in free.items() if room < least]
    if short:
        return fault(f"{', '.join(short)}; at least {least:g} are wanted.", "thaw gc")
    return ok(f"{min(free.values()):.1f} GB free.")


def places(root: Path) -> list[Path]:
    """Where files of a project are written."""
    return list(dict.fromkeys([root, root / "build", root / ".dvc" / "cache", Path(tempfile.gettempdir())]))


def memory(least: float) -> Finding:
    """Whether there is memory to work with; what a container is allowed counts. least: GB."""
    import psutil

    free = psutil.virtual_memory().available
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(used.read_text()))
    if free / GB < least:
        return fault(
            f"{free / GB:.1f} GB of memory are free; at least {least:g} are wanted.", "ps aux --sort=-rss | head"
        )
    return ok(f"{free / GB:.1f} GB of memory free.")


def shared_memory(place: Path = SHARED_MEMORY, least: float = 1.0) -> Finding:
    """Whether processes can pass weights on in memory, as samplers in a process of their own do. least: GB."""
    if not place.is_dir() or not os.access(place, os.W_OK):
        return fault(
            f"there is no {place} to write to, which rollout.placement=server needs.", "mount -t tmpfs tmpfs /dev/shm"
        )
    if (free := shutil.disk_usage(place).free / GB) < least:
        told = f"{place} has {free:.2f} GB free: little for weights, which rollout.placement=server puts there."
        return warning(told, "docker run --shm-size=8g ...")
    return ok(f"{free:.1f} GB of shared memory free.")


def ports(wanted: Mapping[int, str]) -> Finding:
    """Whether these ports are free. wanted: the command that takes each, with {} for another port."""
    findings = [ok(f"free: {', '.join(map(str, wanted))}.")]
    for port, command in wanted.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                told = f"port {port} is taken{_by_whom(port)} ({error.strerror})."
                findings.append(warning(told, command.format(port + 1)))
    return worst(findings)


def _by_whom(port: int) -> str:
    """The process that listens there, where this user may know."""
    import psutil

    for process in psutil.process_iter(["name"]):
        try:
            connections = process.net_connections("tcp")
        except (psutil.Error, OSError):
            continue
        if any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in connections):
            return f" by {process.name()}, process {process.pid}"
    return ""


def _installed() -> dict[str, str]:
    """The version of every installed package, the one that is imported; one without a readable record is missing."""
    found: dict[str, str] = {}
    for one in distributions():
        if one.metadata and one.metadata["Name"]:
            found.setdefault(_name(one.metadata["Name"]), one.version)
    return found


def _name(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def _some(things: list[str], most: int = 4) -> str:
    rest = len(things) - most
    return ", ".join(things[:most]) + (f" and {rest} more" if rest > 0 else "")
