"""What a run is known by, and what it leaves behind when it has finished: train.json and curves.csv."""

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from components.config import Arm, Settings
from components.data.digest import dvc_md5

RECORD = "train.json"
NOT_OF_A_RUN = {"arms", "seeds", "probe", "promote", "race", "sweep", "teaching"}  # settings that no run depends on


@dataclass(frozen=True)
class TrainingRecord:
    """What a finished run leaves behind in train.json."""

    identity: dict[str, Any]
    arm: str
    seed: int
    steps: int
    best_step: int
    validation: float  # maj@k of the best step, a fraction of 1
    wall_seconds: float
    mlflow_run_id: str
    model_name: str
    model_version: int  # the registered version of the best step
    stopped: str | None  # why a race ended it before its time
    validated: dict[str, dict[str, list[float | None]]]  # as RunState has it
    shown: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # as RunState has it
    commit: str | None = None  # of the code
    finished: str | None = None  # when, UTC

    @classmethod
    def read(cls, folder: Path) -> "TrainingRecord":
        """The record of the run that finished in a folder."""
        return cls(**json.loads((folder / RECORD).read_text(encoding="utf-8")))

    def write(self, folder: Path) -> None:
        """Leave the record in the run's folder, which says that it has finished: a whole record or none."""
        partial = folder / f"{RECORD}.partial"
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        partial.replace(folder / RECORD)


def identity_of(settings: Settings, arm: Arm, seed: int, data: Path, base: Path) -> dict[str, Any]:
    """What makes a run the run it is: with another one of these it cannot go on, nor is it finished."""
    return {
        "settings": settings.model_dump(mode="json", exclude=NOT_OF_A_RUN),
        "arm": arm.name,
        "seed": seed,
        "data": dvc_md5(data),
        "base": dvc_md5(base),
    }


def write_curves(path: Path, curves: Iterable[Mapping[str, float]]) -> None:
    """One line a step; figures that a step does not have (validation, between validations) are left empty."""
    rows = list(curves)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
