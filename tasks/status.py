"""What goes on in a project: from the files that work keeps of itself, from a run's folder, and from Prefect's server.

Nothing is made, and nobody is asked but a Prefect server that is known to be there.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from components.errors import UserError
from components.job import JOBS, Job, read_job, stage_file
from components.outlook import parts_of, span, whole
from tasks.flow_runs import flow_runs
from tasks.folder_lock import alone_in
from tasks.workspace import EXPERIMENTS

SERVE = "serve"  # the job of `thaw serve`, which says its server's address
Row = dict[str, Any]


def status(root: Path, folder: Path | None = None) -> Row:
    """`work` that goes on or was left, `last_failure`, and `prefect`; for a run's folder also `run`.

    folder: tell of the work on this folder alone, or, where it has a dvc.yaml, in it.

    Raises:
        UserError: there is nothing in `folder` to tell of.
    """
    jobs = dict(_jobs(folders_of_jobs(root)))
    if folder is None:
        return {"work": _work(jobs), "last_failure": _last_failure(jobs), "prefect": flow_runs(_served(jobs))}
    if (folder / "dvc.yaml").is_file():
        jobs = dict(_jobs([folder]))
        return {"work": _work(jobs), "last_failure": _last_failure(jobs), "prefect": None}
    jobs = {file: job for file, job in jobs.items() if Path(job.folder) == folder.resolve()}
    run = _run(folder)
    if run is None and not jobs:
        raise UserError(f"{folder} holds no run, and nobody is at work on it; `thaw status` tells of all that goes on.")
    return {"work": _work(jobs), "last_failure": _last_failure(jobs), "prefect": None, "run": run}


def folders_of_jobs(root: Path) -> list[Path]:
    """Where work of a project may keep its files: the project, its experiments, and the folder that one is in."""
    return list(dict.fromkeys([root, Path.cwd(), *sorted(root.glob(f"{EXPERIMENTS}/*"))]))


def log_of(file: Path) -> Path | None:
    """The log beside a job's file; None of what was started by hand, which says all in its terminal."""
    log = file.with_suffix(".log")
    return log if log.is_file() else None


def _jobs(folders: Iterable[Path]) -> Iterator[tuple[Path, Job]]:
    for folder in folders:
        for file in sorted((folder / JOBS).glob("*.json")):
            job = read_job(file)
            if job and (job.state == "running" or Path(job.folder).exists()):
                yield file.resolve(), job


def _work(jobs: dict[Path, Job]) -> list[Row]:
    """A row for each sweep, with its stages, and for each job that is none of a sweep's; what runs comes first."""
    of_sweeps = {
        (Path(job.folder) / stage_file(stage, ".json")).resolve() for job in jobs.values() for stage in job.stages
    }
    rows = [_row(file, job) for file, job in jobs.items() if file not in of_sweeps]
    return sorted(rows, key=lambda row: (row["state"] != "running", -row["began"]))


def _row(file: Path, job: Job) -> Row:
    row = asdict(job) | {"state": job.state, "summary": _summary(job), "log": _text(log_of(file))}
    parts = parts_of(job)
    for name, stage in row["stages"].items():
        if part := parts.get(name):
            stage |= {"pid": part.pid, "summary": _summary(part), "done": part.done, "total": part.total}
            stage |= {"left": part.left, "figures": part.figures, "told": part.told}
        stage["log"] = _text(log_of(Path(job.folder) / stage_file(name, ".json")))
    return row


def _summary(job: Job) -> str:
    """How far a job is, in words."""
    if job.stages:
        return whole(job)
    parts = [] if job.part in ("", job.what) else [job.part]
    if job.part:
        parts.append(f"{job.done} of {job.total}" if job.total is not None else f"{job.done} done")
    if job.left is not None and job.state == "running":
        parts.append(f"{span(job.left)} left")
    return ", ".join([*parts, *([job.said] if job.said else [])])


def _last_failure(jobs: dict[Path, Job]) -> Row | None:
    failures = []
    for file, job in jobs.items():
        failed = {name: stage for name, stage in job.stages.items() if stage.state == "failed"}
        for name, stage in failed.items():
            log = log_of(Path(job.folder) / stage_file(name, ".json"))
            at = (stage.began or 0) + (stage.seconds or 0)
            why = stage.why.removesuffix("; it last said:")  # which stands in the log
            failures.append({"what": name, "folder": job.folder, "at": at, "why": why, "log": _text(log)})
        if job.state == "failed" and not failed:
            told = {"what": job.what, "folder": job.folder, "at": job.told, "why": job.ended}
            failures.append(told | {"log": _text(log_of(file))})
    return max(failures, key=lambda failure: failure["at"], default=None)


def _served(jobs: dict[Path, Job]) -> str | None:
    """The address of the Prefect server that `thaw serve` works with here."""
    return next((job.said for job in jobs.values() if job.what == SERVE and job.state == "running"), None)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _run(folder: Path) -> Row | None:
    """Where a training run stands, from what its folder holds."""
    record, states = _json(folder / "train.json"), sorted(folder.glob("state/step-*/state.json"), key=_step)
    if record:
        return {"state": "ended", "step": record["steps"], "steps": record["steps"]} | _best(record)
    states = [path for path in states if path.parent.suffix != ".partial"]
    if not states or (state := _json(states[-1])) is None:
        return None
    with alone_in(folder) as idle:
        word = "stopped" if idle else "running"
    row = {"state": word, "step": state["step"], "steps": state["identity"]["settings"]["train"]["steps"]}
    return row | _best({"best_step": state["best_step"], "validation": state["best_score"]})


def _best(found: Row) -> Row:
    return {"best_step": found["best_step"], "validation": found["validation"]}


def _step(path: Path) -> int:
    return int(path.parent.name.removeprefix("step-").removesuffix(".partial"))


def _json(path: Path) -> Row | None:
    with suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    return None
