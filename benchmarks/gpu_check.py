"""Everything that only a GPU can show, in at most nine minutes: `make gpu-check`.

    python -m benchmarks.gpu_check               # on the GPU that is visible
    python -m benchmarks.gpu_check --device cpu  # the same on a CPU with a tiny model: whether the script itself works

Each check of benchmarks/gpu_checks.py is a process of its own. One that needs a package that is not installed, or more
time than is left, is told as not run. Writes build/bench/gpu-check.json and .md; the status is 1 where a check failed.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_checks import CHECKS, Check, CheckFailed, Figures, NotHere
from components.progress import say

OUT = Path("build/bench")
SECONDS = 9 * 60
PACKAGES = ("torch", "transformers", "deepspeed", "vllm", "trl", "mlflow")


@dataclass(frozen=True)
class Outcome:
    check: str
    status: str  # passed, failed, or not run
    why: str = ""
    seconds: float = 0.0
    figures: Figures = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(description="Everything that only a GPU can show.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", nargs="+", choices=[check.name for check in CHECKS], help="these checks alone")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU is visible to PyTorch; --device cpu tries the script itself.")
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    deadline = time.monotonic() + SECONDS
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        for check in CHECKS:
            if options.only is None or check.name in options.only:
                outcomes.append(_outcome(check, options.device, Path(folder), deadline))
                say(_line(outcomes[-1]))
    report = {"when": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", **_machine(options.device)}
    OUT.mkdir(parents=True, exist_ok=True)
    found = report | {"checks": [asdict(outcome) for outcome in outcomes]}
    (OUT / "gpu-check.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (OUT / "gpu-check.md").write_text(_page(report, outcomes), encoding="utf-8")
    say(f"written {OUT}/gpu-check.json and {OUT}/gpu-check.md")
    sys.exit(any(outcome.status == "failed" for outcome in outcomes))


def _outcome(check: Check, device: str, folder: Path, deadline: float) -> Outcome:
    """Run a check in a process that ends with it, or tell why not."""
    missing = [package for package in check.needs if find_spec(package) is None]
    if missing:
        return Outcome(check.name, "not run", f"{' and '.join(missing)} not installed")
    started = time.monotonic()
    if deadline - started < check.seconds:
        return Outcome(check.name, "not run", "no time left")
    receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_told, args=(sender, check.name, device, folder))
    process.start()
    sender.close()
    try:
        status, why, figures = receiver.recv() if receiver.poll(deadline - started) else ("failed", "out of time", {})
    except EOFError:
        status, why, figures = "failed", "its process died", {}
    if status == "failed":
        process.terminate()
    process.join(30)
    process.kill()
    return Outcome(check.name, status, why, time.monotonic() - started, figures)


def _told(sender: Any, name: str, device: str, folder: Path) -> None:
    """Run a check and send what came of it."""
    [check] = [check for check in CHECKS if check.name == name]
    try:
        sender.send(("passed", "", check.run(device, folder)))
    except NotHere as error:
        sender.send(("not run", str(error), {}))
    except CheckFailed as error:
        sender.send(("failed", str(error), {}))
    except Exception as error:  # all that may go wrong on a machine nobody has tried
        traceback.print_exc()
        sender.send(("failed", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", {}))


# What is told


def _machine(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {os.cpu_count()} cores ({platform.machine()})"
    return {"device": name, "versions": dict(_versions()), "python": platform.python_version()}


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed"


def _line(outcome: Outcome) -> str:
    figures = ", ".join(f"{name} {_written(value)}" for name, value in outcome.figures.items())
    return f"{outcome.check}: {outcome.status}{f' ({outcome.why})' if outcome.why else ''} {figures}".rstrip()


def _page(report: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    lines = [
        f"`python -m benchmarks.gpu_check`, {report['when']}, {report['device']}: Python {report['python']},",
        f"{versions}.",
        "",
        "| check | status | seconds | figure | value |",
        "|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        status = f"{outcome.status}: {outcome.why}" if outcome.why else outcome.status
        lines.append(f"| {outcome.check} | {status} | {outcome.seconds:.0f} | | |")
        lines += [f"| | | | {name} | {_written(value)} |" for name, value in outcome.figures.items()]
    return "\n".join(lines) + "\n"


def _written(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


if __name__ == "__main__":
    main()
