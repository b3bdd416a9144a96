"""A module on two processes that find each other as those of a launcher do, each with an end of its own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parent.parent.parent


def start_two(module: str, *arguments: object) -> list[subprocess.Popen[str]]:
    """Run `python -m module arguments` twice; what each says comes out of its stdout."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
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
        for rank in range(2)
    ]


def run_two(module: str, *arguments: object, timeout: float) -> list[tuple[int, str]]:
    """Status and words of each process, once both have ended."""
    processes = start_two(module, *arguments)
    try:
        said = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, words) for process, words in zip(processes, said, strict=True)]
