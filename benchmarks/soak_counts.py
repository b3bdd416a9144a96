"""What a long life leaves behind: counted from files, databases and samples, by functions that start nothing."""

import csv
import json
import sqlite3
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

TOLERANCE = 1e-9  # relative; curves.csv and MLflow write the same float


@dataclass(frozen=True)
class Sample:
    """One look at a process; role: serve, worker or server."""

    role: str
    pid: int
    seconds: float  # since the beginning
    resident: int  # bytes
    handles: int


@dataclass(frozen=True)
class Growth:
    """A role's medians in the first and in the last quarter of the time; processes: how many had that role in turn."""

    role: str
    processes: int
    resident: tuple[float, float]
    handles: tuple[float, float]


def growth(samples: Sequence[Sample]) -> list[Growth]:
    """How much each role has grown; a role that was not seen in both quarters is left out."""
    end = max((sample.seconds for sample in samples), default=0.0)
    found = []
    for role in dict.fromkeys(sample.role for sample in samples):
        own = [sample for sample in samples if sample.role == role]
        first = [sample for sample in own if sample.seconds <= end / 4]
        last = [sample for sample in own if sample.seconds >= 3 * end / 4]
        if first and last:
            resident, handles = (
                tuple(statistics.median(getattr(sample, name) for sample in part) for part in (first, last))
                for name in ("resident", "handles")
            )
            found.append(Growth(role, len({sample.pid for sample in own}), resident, handles))
    return found


@dataclass(frozen=True)
class Tracked:
    """What MLflow has of the builds of a project."""

    finished: int  # arms whose files say that they were trained to the end
    figures: int  # that their files hold
    lost: list[str]  # figures that MLflow does not have, or has otherwise, and arms that it has twice
    repeated: int  # steps logged once more by a training that went on from its checkpoint
    running: list[str]  # runs that MLflow shows as running


def tracked(project: Path) -> Tracked:
    """Compare every finished arm's curves and held-out figures with MLflow's store in the project's folder."""
    lost, figures, repeated, trained = [], 0, 0, sorted(project.glob("**/build/train/*/*/train.json"))
    with closing(sqlite3.connect(project / "mlflow.db")) as database:
        for path in trained:
            run = json.loads(path.read_text(encoding="utf-8"))["mlflow_run_id"]
            logged, again = _logged(database, run)
            repeated += again
            for name, step, value in _written(path.parent):
                figures += 1
                if not any(_same(value, other) for other in logged[name, step]):
                    lost.append(f"{path.parent.relative_to(project)}: {name} of step {step}")
        lost += [f"{count} runs named {name}" for name, count in _twice(database)]
        running = [
            f"{name} {run}"
            for name, run in database.execute(
                "SELECT name, run_uuid FROM runs WHERE status = 'RUNNING' AND lifecycle_stage = 'active'"
            )
        ]
    return Tracked(len(trained), figures, lost, repeated, running)


def _logged(database: sqlite3.Connection, run: str) -> tuple[dict[tuple[str, int], list[float]], int]:
    """The values of each metric at each step, and how many steps have some more than once."""
    values: dict[tuple[str, int], list[float]] = defaultdict(list)
    rows = database.execute("SELECT key, step, value, is_nan FROM metrics WHERE run_uuid = ?", [run])
    for name, step, value, is_nan in rows:
        values[name, step].append(float("nan") if is_nan else value)
    return values, len({step for (_, step), found in values.items() if len(found) > 1})


def _written(trained: Path) -> Iterator[tuple[str, int, float]]:
    """The figures in the files of an arm: its curves, and what its best checkpoint reached on the held-out split."""
    with (trained / "curves.csv").open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            step = int(row.pop("step"))
            yield from ((name, step, float(text)) for name, text in row.items() if text)
    evaluated = trained.parent.parent.parent / "evaluate" / trained.parent.name / trained.name / "metrics.json"
    if evaluated.is_file():
        step = json.loads((trained / "train.json").read_text(encoding="utf-8"))["best_step"]
        for name, value in json.loads(evaluated.read_text(encoding="utf-8")).items():
            yield f"test/{name}", step, value


def _same(one: float, other: float) -> bool:
    return one == other or abs(one - other) <= TOLERANCE * abs(one) or (one != one and other != other)


def _twice(database: sqlite3.Connection) -> Iterator[tuple[str, int]]:
    """Arms of one sweep with more than one run."""
    yield from database.execute(
        "SELECT runs.name, COUNT(*) FROM runs JOIN tags USING (run_uuid) WHERE tags.key = 'mlflow.parentRunId'"
        " AND lifecycle_stage = 'active' AND runs.name LIKE '%-seed%' GROUP BY runs.name, tags.value"
        " HAVING COUNT(*) > 1"
    )


def disagreements(flow_runs: dict[str, str], found: Tracked) -> list[str]:
    """Where Prefect and MLflow tell different stories, once everything has come to its end and nothing runs.

    flow_runs: the state of each flow run by its name.
    """
    going = [f"Prefect: {name} is {state}" for name, state in flow_runs.items() if state in ("RUNNING", "PENDING")]
    return going + [f"MLflow: {run} is RUNNING, and nothing runs" for run in found.running]


def leftovers(project: Path, home: Path, temporary: Path) -> Counter[str]:
    """Files that nobody needs any more, by kind."""
    found = Counter[str]()
    found["temporary files"] = sum(1 for path in temporary.rglob("*") if path.is_file())
    found["half-written folders"] = sum(1 for _ in project.rglob("*.partial"))
    found["states of finished trainings"] = sum(
        1 for path in project.glob("**/build/train/*/*/train.json") if (path.parent / "state").exists()
    )
    found["lock files"] = sum(1 for root in (project, home) for path in root.rglob("*.lock") if path.name != "dvc.lock")
    found["notes on runs"] = sum(1 for _ in home.glob("thaw-runs/*"))
    found["leases of Prefect's"] = sum(1 for path in home.glob("concurrency_leases/*") if path.name[0] not in "e.")
    return found
