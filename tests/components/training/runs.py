"""Whole runs, small, and what they left behind, for tests to compare."""

import csv
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.config import Arm, Settings
from components.tracking.runs import Tracker
from components.training import loop
from components.training.loop import train
from components.training.record import RECORD, TrainingRecord

ARM = "garl-q0.75"


@dataclass(frozen=True)
class Experiment:
    settings: Settings
    data: Path
    base: Path

    def train(self, out: Path, tracker: Tracker, *, arm: str = ARM, seed: int = 0) -> TrainingRecord:
        record = self.train_until(None, out, tracker, arm=arm, seed=seed)
        assert record is not None
        return record

    def train_until(
        self, until: int | None, out: Path, tracker: Tracker, *, arm: str = ARM, seed: int = 0
    ) -> TrainingRecord | None:
        inputs = {"data": self.data, "base": self.base, "out": out, "tracker": tracker}
        return train(self.settings, Arm.parse(arm), seed, **inputs, until=until)


@dataclass(frozen=True)
class Reference:
    """A run that nothing disturbed."""

    out: Path
    tracker: Tracker
    record: TrainingRecord


def files(out: Path) -> dict[str, bytes]:
    """All that a run made, but for train.json, which tells the time."""
    paths = (path for path in out.rglob("*") if path.is_file() and path.name != RECORD)
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def figures(tracker: Tracker, run_id: str) -> dict[str, set[tuple[int, float]]]:
    """The metrics that MLflow holds, all values of every step, but for how fast it was."""
    client = tracker.store.client
    names = [name for name in client.get_run(run_id).data.metrics if not name.startswith("speed/")]
    return {name: {(item.step, item.value) for item in client.get_metric_history(run_id, name)} for name in names}


def repeatable(record: TrainingRecord) -> dict[str, Any]:
    told_once = {"wall_seconds", "mlflow_run_id", "model_version", "finished"}
    return {name: value for name, value in asdict(record).items() if name not in told_once}


def curve(out: Path, name: str) -> list[float]:
    """A column of curves.csv, which has a value of every step."""
    return [float(row[name]) for row in csv.DictReader((out / "curves.csv").open())]


def switches(tracker: Tracker, record: TrainingRecord) -> dict[str, str]:
    """What MLflow's run says of each change of the estimator."""
    tags = tracker.store.client.get_run(record.mlflow_run_id).data.tags
    return {name: text for name, text in tags.items() if name.startswith(loop.SWITCH_TAG)}
