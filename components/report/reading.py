"""What the steps of a build left on disk, read into Results."""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from components.config import Arm
from components.errors import UserError
from components.evaluation.metrics import Values
from components.forecast import read as read_forecasts
from components.report.results import MADE, ArmResults, Figures, Origin, Probe, Results, Run, Samples, Shown


def collect(build: Path, arms: Sequence[str], seeds: Sequence[int]) -> Results:
    """Read what the probe, the training and the evaluation of these arms and seeds left in the build folder.

    Raises:
        UserError: a file is missing or damaged, or not every run was evaluated on the same examples.
    """
    evaluations = {(arm, seed): _evaluation(build, arm, seed) for arm in arms for seed in seeds}
    (first, common), *others = evaluations.items()
    for other, evaluation in others:
        _check_same(first, common, other, evaluation)
    probe, base = _probe(build / "probe" / "probe.json", common.k)
    base_samples = build / "probe" / "samples.jsonl"
    return Results(
        task=common.task,
        start=common.start,
        split=common.split,
        k=common.k,
        examples=len(common.samples),
        probe=probe,
        base=base,
        base_samples=read_samples(base_samples) if base_samples.exists() else [],
        forecasts=read_forecasts(build / "probe"),
        arms=[
            ArmResults(arm, Arm.parse(arm), [_run(build, arm, seed, evaluations[arm, seed]) for seed in seeds])
            for arm in arms
        ],
    )


def read_samples(path: Path, cure: str = "evaluate the model again.") -> list[Samples]:
    """The lines of a samples.jsonl.

    Raises:
        UserError: the file is missing, damaged or empty; `cure` ends the sentence.
    """
    with _complete(path, cure), path.open(encoding="utf-8") as lines:
        samples = [Samples(**json.loads(line)) for line in lines]
        if not all(item.correct for item in samples) or not samples:
            raise ValueError("an example without samples, or no example at all")
        return samples


@dataclass(frozen=True)
class _Evaluation:
    """One evaluation.json with the samples.jsonl beside it."""

    task: str
    start: str
    split: str
    k: int
    checkpoint: str
    figures: Figures
    samples: list[Samples]


def _evaluation(build: Path, arm: str, seed: int) -> _Evaluation:
    folder = build / "evaluate" / arm / str(seed)
    cure = f"run `thaw evaluate` for arm {arm}, seed {seed}, or `dvc repro` for all of them."
    with _complete(folder / "evaluation.json", cure):
        record = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        plain = {name: record[name] for name in ("task", "start", "split", "k", "checkpoint")}
        figures = Figures.read(record["figures"], record["k"])
    return _Evaluation(**plain, figures=figures, samples=read_samples(folder / "samples.jsonl", cure))


def _check_same(
    first: tuple[str, int], evaluation: _Evaluation, other: tuple[str, int], other_evaluation: _Evaluation
) -> None:
    differing = [
        name for name in ("task", "start", "split", "k") if getattr(evaluation, name) != getattr(other_evaluation, name)
    ]
    if {item.id for item in evaluation.samples} != {item.id for item in other_evaluation.samples}:
        differing.append("examples")
    if differing:
        raise UserError(
            f"arm {first[0]}, seed {first[1]} and arm {other[0]}, seed {other[1]} were evaluated with different"
            f" {', '.join(differing)} and cannot share a report; `dvc repro` evaluates what is out of date again."
        )


def _probe(path: Path, k: int) -> tuple[Probe, Figures]:
    with _complete(path, "run `thaw probe`, or `dvc repro` for all steps."):
        record = json.loads(path.read_text(encoding="utf-8"))
        probe = Probe(
            mean=record["p0"]["mean"],
            log_p=np.array([-math.inf if value is None else value for value in record["log_p"]]),
            group_size=record["group_size"],
            grpo_groups_with_signal=record["grpo_groups_with_signal"],
            kinds={kind: found["median"] for kind, found in record["kinds"].items()},
        )
        return probe, Figures.read(record["base"], k)


def _run(build: Path, arm: str, seed: int, evaluation: _Evaluation) -> Run:
    folder = build / "train" / arm / str(seed)
    cure = f"run `thaw train` for arm {arm}, seed {seed}, or `dvc repro` for all of them."
    with _complete(folder / "train.json", cure):
        record = json.loads((folder / "train.json").read_text(encoding="utf-8"))
        made = {name: record[name] for name in MADE}
        known = {name: value for name, value in record["identity"].items() if name in ("data", "base", "settings")}
        origin = Origin(**known, commit=record.get("commit"), finished=record.get("finished"))
        shown = {int(step): [Shown(**item) for item in items] for step, items in record.get("shown", {}).items()}
    with _complete(folder / "curves.csv", cure):
        curves = _curves(folder / "curves.csv")
    return Run(
        seed=seed,
        figures=evaluation.figures,
        samples=evaluation.samples,
        curves=curves,
        checkpoint=evaluation.checkpoint,
        origin=origin,
        shown=shown,
        **made,
    )


def _curves(path: Path) -> dict[str, Values]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError("no steps")
    columns = {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}
    if "step" not in columns:
        raise KeyError("step")
    return columns


@contextmanager
def _complete(path: Path, cure: str) -> Iterator[None]:
    """Tell what reading this file finds missing as one sentence with its cure."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"there is no {path}; {cure}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(f"{path} is damaged or from another version ({reason}); {cure}") from None
