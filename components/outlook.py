"""How long a sweep still takes, from how long its stages took, and what there is to say of that in words."""

import heapq
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from components.job import Job, read_job, stage_file

TOLD = ("running", "waiting", "paused", "failed", "interrupted")  # states of arms, in this order


def parts_of(sweep: Job) -> dict[str, Job]:
    """What the processes of a sweep's running stages say of themselves."""
    files = {name: Path(sweep.folder) / stage_file(name, ".json") for name in sweep.stages}
    found = {name: read_job(files[name]) for name, stage in sweep.stages.items() if stage.state == "running"}
    return {name: job for name, job in found.items() if job and job.state == "running"}


def time_left(sweep: Job, parts: Mapping[str, Job], now: float) -> tuple[float, bool]:
    """Seconds until the stages that run and those that wait have ended, and whether that is known of each of them.

    A stage takes as long as those of its kind (train, evaluate, ...) took on average, where none has ended as long as
    those that run; one of whose kind nothing is known counts as none. They are dealt out to the sweep's slots in turn.
    """
    took = _typical(sweep, parts, now)
    running, waiting = [], []
    for name, stage in sweep.stages.items():
        each = took.get(_kind(name))
        if stage.state == "running":
            left = parts[name].left if name in parts else None
            since = 0.0 if stage.began is None else now - stage.began
            running.append(max(0.0, each - since) if left is None and each is not None else left)
        elif stage.state in ("waiting", "paused"):
            waiting.append(each)
    slots = [*(left or 0.0 for left in running), *[0.0] * (sweep.parallel - len(running))]
    heapq.heapify(slots)
    for seconds in waiting:
        heapq.heapreplace(slots, slots[0] + (seconds or 0.0))
    return max(slots), None not in running + waiting


def whole(sweep: Job) -> str:
    """How far a sweep is and how long it still takes: `2 of 8 arms trained, 2 running, 4 waiting; about 12:30 left`."""
    states = Counter(stage.state for name, stage in sweep.stages.items() if _kind(name) == "train")
    done = states["built"] + states["up to date"]
    counted = [f"{done} of {states.total()} arms trained"]
    counted += [f"{states[state]} {state}" for state in TOLD if states[state]]
    if sweep.state != "running":
        return ", ".join(counted)
    seconds, known = time_left(sweep, parts_of(sweep), time.time())
    if not seconds and not known:
        return ", ".join(counted)
    return f"{', '.join(counted)}; {'about' if known else 'at least'} {span(seconds)} left"


def span(seconds: float) -> str:
    """A time as people read it: 0:34, 12:05, 3:10:00, 2 days 3:10:00."""
    days, rest = divmod(round(seconds), 86400)
    hours, minutes = divmod(rest // 60, 60)
    clock = f"{hours}:{minutes:02}:{rest % 60:02}" if days or hours else f"{minutes}:{rest % 60:02}"
    return f"{days} day{'s' if days > 1 else ''} {clock}" if days else clock


def _typical(sweep: Job, parts: Mapping[str, Job], now: float) -> dict[str, float]:
    """Seconds that a stage of a kind takes."""
    ended: dict[str, list[float]] = {}
    running: dict[str, list[float]] = {}
    for name, stage in sweep.stages.items():
        if stage.state == "built" and stage.seconds is not None:
            ended.setdefault(_kind(name), []).append(stage.seconds)
        elif stage.began is not None and name in parts and (left := parts[name].left) is not None:
            running.setdefault(_kind(name), []).append(now - stage.began + left)
    return {kind: sum(seconds) / len(seconds) for kind, seconds in (running | ended).items()}


def _kind(stage: str) -> str:
    return stage.partition("@")[0]
