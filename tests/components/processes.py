"""A module on processes that find each other as those of a launcher do, each with an end of its own."""

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PROJECT = Path(__file__).parent.parent.parent


def start(processes: int, module: str, *arguments: object) -> list[subprocess.Popen[str]]:
    """Run `python -m module arguments` so often at the same time; what each says comes out of its stdout."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    outside = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=PROJECT,
            env=outside | common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "DS_ACCELERATOR": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]


def run(processes: int, module: str, *arguments: object, timeout: float) -> list[tuple[int, str]]:
    """Status and words of each process, once all have ended."""
    started = start(processes, module, *arguments)
    try:
        with ThreadPoolExecutor(processes) as pool:  # one that nobody listens to would stop when its pipe is full
            said = list(pool.map(lambda process: process.communicate(timeout=timeout)[0], started))
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, words) for process, words in zip(started, said, strict=True)]
