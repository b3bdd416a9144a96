"""What the flow costs: `thaw sweep` against the bare commands of the same DVC stages, one after the other.

    python -m benchmarks.flow --repeats 3         # writes build/bench/flow.json

Both run in fresh copies of the project with quick settings, one arm at a time. The flow adds a Prefect server, DVC's
bookkeeping and the publication of the report.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from dvc.repo import Repo

from benchmarks.small import SMALL
from components.config import load_settings

PROJECT = Path(__file__).parent.parent
OUT = PROJECT / "build" / "bench" / "flow.json"
ARMS = ["grpo", "garl-q0.75", "garl-q1", "paft-q0.75"]


def main() -> None:
    parser = argparse.ArgumentParser(description="What the flow costs beside the bare commands of its stages.")
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    few, many = 1, len(ARMS)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "prefect"
        timed(sweep, project(Path(scratch) / "first", few), home)  # makes Prefect's database, once a user
        seconds = {
            (way, number): [
                timed(way, project(Path(scratch) / f"{way.__name__}-{number}-{repeat}", number), home)
                for repeat in range(repeats)
            ]
            for number in (few, many)
            for way in (bare, sweep)
        }
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    costs = {number: medians[sweep, number] - medians[bare, number] for number in (few, many)}
    of_arm = (costs[many] - costs[few]) / (many - few)
    of_sweep = costs[few] - few * of_arm
    rows = [{"way": way.__name__, "arms": number, "seconds": values} for (way, number), values in seconds.items()]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"runs": rows, "seconds_a_sweep": of_sweep, "seconds_an_arm": of_arm}, indent=2))
    for row in rows:
        print(f"{row['way']:>6} {row['arms']} arms: " + "  ".join(f"{value:6.1f} s" for value in row["seconds"]))
    print(f"the flow costs {of_sweep:.1f} s a sweep and {of_arm:.1f} s an arm\nwritten {OUT}")


def timed(way: Callable[[Path], list[list[str]]], folder: Path, home: Path) -> float:
    """Seconds that the commands take, one after the other."""
    commands = way(folder)
    started = time.perf_counter()
    for command in commands:
        run(folder, *command, home=home)
    return time.perf_counter() - started


def bare(folder: Path) -> list[list[str]]:
    """Every stage's command, as DVC resolves it; dvc.yaml has them in the order in which they need each other."""
    with Repo(str(folder)) as repo:
        return [["sh", "-c", stage.cmd] for stage in repo.stage.load_all(str(folder / "dvc.yaml"))]


def sweep(_folder: Path) -> list[list[str]]:
    return [["thaw", "sweep"]]


def project(folder: Path, arms: int) -> Path:
    """A fresh copy of the project's files, in git, with its raw data and quick settings."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=PROJECT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    for name in filter(None, listed):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, folder / name)
    settings = load_settings(folder / "params.yaml", [*SMALL, "sweep.parallel=1", f"arms=[{', '.join(ARMS[:arms])}]"])
    (folder / "params.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
    who = ["-c", "user.name=bench", "-c", "user.email=bench@example.org", "-c", "commit.gpgsign=false"]
    for command in (
        ["git", "init"],
        ["git", "add", "-A"],
        ["git", *who, "commit", "-m", "as it is"],
        ["dvc", "pull", "data.dvc"],
    ):
        run(folder, *command)
    return folder


def environment(folder: Path, home: Path | None = None) -> dict[str, str]:
    """What a command finds that is run in a copy of the project; home: Prefect's folder."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")}
    return kept | {
        "PATH": str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"],
        "PYTHONPATH": str(folder),
        "PREFECT_HOME": str(home),
    }


def run(folder: Path, *command: str, home: Path | None = None) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment(folder, home), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed in {folder}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
