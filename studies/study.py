"""What a study is: a question, the sweeps that answer it, and the figures they end with, kept beside the question.

A study is a folder with a study.yaml. Each of its sweeps is an experiment of the project, `study-NAME-SWEEP`, run by
the same flow as `thaw sweep` and recorded by DVC: run again it goes on where it was, and what is up to date stays.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.config import load_settings
from components.errors import UserError
from components.forecast import recommended
from components.report.reading import collect
from components.report.results import Results
from flows.options import PARAMS
from flows.parameters import Changes

# What a row of results.json has for the registry alone.
NOT_OF_A_STUDY = ("split", "checkpoint", "mlflow_run_id", "model_name", "model_version", "finished")

START = 5  # steps: a gradient at q near 1 has a heavy tail, their median has not


class Sweep(BaseModel):
    """One sweep of a study: its name in tables, what it changes in the project's params.yaml, and whether it races."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"[a-z0-9][a-z0-9.-]*")
    set: dict[str, Any] = {}
    race: bool = False


class Study(BaseModel):
    """study.yaml.

    question: one sentence. set: settings of all sweeps, by their dotted names; a sweep's own win. tables: what is shown
    of the rows (studies/tables.py).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str
    tables: list[Literal["learned", "best", "forecasts", "slopes"]] = ["learned"]
    set: dict[str, Any] = {}
    sweeps: list[Sweep] = Field(min_length=1)

    @classmethod
    def read(cls, folder: Path) -> "Study":
        """Read folder/study.yaml and check the settings of every sweep.

        Raises:
            UserError: there is no such file, or it is wrong.
        """
        file = folder / "study.yaml"
        if not file.is_file():
            raise UserError(f"there is no {file}; studies/README.md lists the studies.")
        try:
            study = cls.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
            for sweep in study.sweeps:
                load_settings(PARAMS, study.changes(sweep).overrides())
        except (ValidationError, yaml.YAMLError) as error:
            raise UserError(f"{file}: {' '.join(str(error).split())}") from None
        return study

    def changes(self, sweep: Sweep) -> Changes:
        return Changes.read(self.set | sweep.set)


def run_study(folder: Path) -> list[dict[str, Any]]:
    """Run what is stale of a study's sweeps; returns its rows and writes them to folder/result.json.

    A row for the base model and for each arm and seed of each sweep: those of results.json with `sweep`, its `set`,
    `escape_step` (by which half of the training examples had P of 0.1, None for never), `grad_norm` (the gradient's
    length at the start, the median of the first steps), `forecast_step` (when the probe expected the escape),
    `recommended` (whether the probe named the arm) and `seconds` of training.

    Raises:
        UserError: study.yaml is wrong.
    """
    from flows.serve import with_server
    from flows.sweep import q_sweep

    study, rows = Study.read(folder), []
    with with_server():
        for sweep in study.sweeps:
            name = f"study-{folder.name}-{sweep.name}"
            q_sweep(PARAMS, study.changes(sweep), name, race=sweep.race)
            settings = load_settings(Path("experiments") / name / PARAMS)
            results = collect(Path("experiments") / name / "build", settings.arm_names, settings.seeds)
            rows += _rows(results, sweep, study.set | sweep.set)
    (folder / "result.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return rows


def _rows(results: Results, sweep: Sweep, changed: dict[str, Any]) -> Iterator[dict[str, Any]]:
    runs = {(item.name, run.seed): run for item in results.arms for run in item.runs}
    forecasts = {item.arm: item.escape_step for item in results.forecasts}
    named = recommended(results.forecasts)[0].arm if results.forecasts else None
    for row in results.rows():
        kept = {name: value for name, value in row.items() if name not in NOT_OF_A_STUDY}
        seconds, run = kept.pop("wall_seconds"), runs.get((row["arm"], row["seed"]))
        yield {
            "sweep": sweep.name,
            "set": {name: value for name, value in changed.items() if name != "seeds"},
            **kept,
            "escape_step": run and run.escape_step,
            "grad_norm": run and float(np.median(run.curves["train/grad_norm"][:START])),
            "forecast_step": forecasts.get(row["arm"]),
            "recommended": row["arm"] == named,
            "seconds": seconds,
        }
