"""What the sections of the page say, worked out of the results."""

import base64
import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from components.forecast import Forecast, recommended
from components.report.numbers import percent
from components.report.results import ArmResults, Results, Samples, Shown

if TYPE_CHECKING:
    from components.report.charts import Chart

ANSWER_PROBLEMS = 6  # whose answers are shown
COMMITMENTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # whose escape times are shown, beside those of the arms
# Problems by the share of the base model's answers that are right: up to this, and its name.
DIFFICULTIES = {0.0: "never right", 0.25: "up to 25%", 0.5: "up to 50%", 1.0: "above"}


@dataclass(frozen=True)
class Escape:
    """How the theory orders the time to leave a start at p0: its leading term, and how often it is that of q = 1."""

    q: float
    time: float
    ratio: float


@dataclass(frozen=True)
class Answer:
    """What one model said to one problem: its vote, and how many of its k samples were right."""

    who: str
    number: int | None  # the arm's place in the order by q; None for the base model
    vote: str
    right: int
    vote_correct: bool


@dataclass(frozen=True)
class Outlook:
    """What the probe forecast of an arm, and by which step of each seed's training half of the examples escaped."""

    number: int
    arm: ArmResults
    forecast: Forecast
    happened: list[str]


@dataclass(frozen=True)
class Compared:
    """Rollouts of one problem at the first and at the last validation of an arm's first seed."""

    number: int
    arm: ArmResults
    early: tuple[int, Shown]
    late: tuple[int, Shown]


@dataclass(frozen=True)
class Download:
    """A file that the page carries in itself. link: a data: URL."""

    name: str
    about: str
    link: str


def typical_log_p0(results: Results) -> float:
    """log P of a typical problem under the base model: the median, or the mean's where that is 0; -inf if both are."""
    probe = results.probe
    return probe.median if math.isfinite(probe.median) or not probe.mean else math.log(probe.mean)


def escapes(results: Results) -> list[Escape]:
    """The theory's escape times from a typical P, by q; empty where P is nowhere positive."""
    from components.objective.tsallis import escape_time_order  # imports torch

    log_p0 = typical_log_p0(results)
    if not math.isfinite(log_p0) or log_p0 >= 0:
        return []
    commitments = sorted({*COMMITMENTS, *(item.arm.q for item in results.arms if item.arm.q is not None)})
    slowest = escape_time_order(log_p0, 1.0).item()
    times = [(q, escape_time_order(log_p0, q).item()) for q in commitments]
    return [Escape(q, time, time / slowest) for q, time in times]


def outlooks(results: Results) -> list[Outlook]:
    """Of each arm with a forecast."""
    forecasts = {item.arm: item for item in results.forecasts}
    return [
        Outlook(number, arm, forecasts[arm.name], [str(run.escape_step or "never") for run in arm.runs])
        for number, arm in enumerate(results.ordered)
        if arm.name in forecasts
    ]


def foretold(results: Results) -> str:
    """Whether the arm that the probe named is the best in the end, in a sentence; empty without forecasts."""
    arms = {arm.name: arm for arm in results.arms}
    if not results.forecasts or (named := arms.get(recommended(results.forecasts)[0].arm)) is None:
        return ""
    best = max([named, *results.ordered], key=lambda arm: arm.figures.maj_at_k.value)  # of equals, the named one
    theirs, ours = best.figures.maj_at_k, named.figures.maj_at_k
    if best is named:
        return f"It named {named.label}, and no arm ends higher: maj@{results.k} {percent(ours.value)}."
    near = "; their intervals overlap" if ours.high >= theirs.low else ""
    return (
        f"It named {named.label}, which ends at maj@{results.k} {percent(ours.value)}; the best arm is {best.label},"
        f" {percent(theirs.value)}{near}."
    )


def answers(results: Results) -> list[tuple[str, list[Answer]]]:
    """The votes of every model's first seed on a few problems, from the easiest to the hardest for all models."""
    models: list[tuple[str, int | None, list[Samples]]] = [("base model", None, results.base_samples)]
    models += [(arm.label, number, arm.runs[0].samples) for number, arm in enumerate(results.ordered)]
    said: dict[str, list[Answer]] = {}
    for who, number, samples in models:
        for sample in samples:
            answer = Answer(who, number, sample.vote, sum(sample.correct), sample.vote_correct)
            said.setdefault(sample.id, []).append(answer)
    everyone = {sample.id for sample in results.arms[0].runs[0].samples}
    ranked = sorted(everyone, key=lambda name: (-sum(answer.right for answer in said[name]), name))
    chosen = np.unique(np.linspace(0, len(ranked) - 1, ANSWER_PROBLEMS).round().astype(int))
    return [(ranked[index], said[ranked[index]]) for index in chosen]


def compared(results: Results) -> list[tuple[Shown, list[Compared]]]:
    """For each problem whose rollouts were kept, those of every arm's first seed, early and late in its training."""
    found: dict[str, tuple[Shown, list[Compared]]] = {}
    for number, arm in enumerate(results.ordered):
        steps = sorted(shown := arm.runs[0].shown)
        if not steps:
            continue
        late = {item.id: item for item in shown[steps[-1]]}
        for item in shown[steps[0]]:
            if item.id in late:
                both = Compared(number, arm, (steps[0], item), (steps[-1], late[item.id]))
                found.setdefault(item.id, (item, []))[1].append(both)
    return list(found.values())


def difficulties(results: Results) -> list[tuple[str, int, list[float]]]:
    """maj@k of every arm on the problems that the base model got right so often: name, number, a figure an arm.

    Empty where its samples are not there, or all problems are of one difficulty.
    """
    shares = {sample.id: sample.accuracy for sample in results.base_samples}
    names = {
        name: next(told for limit, told in DIFFICULTIES.items() if share <= limit) for name, share in shares.items()
    }
    found = []
    for told in DIFFICULTIES.values():
        of = {name for name, difficulty in names.items() if difficulty == told}
        tested = [[s.vote_correct for s in run.samples if s.id in of] for arm in results.ordered for run in arm.runs]
        if tested[0]:
            seeds = len(results.arms[0].runs)
            each = [float(np.mean(votes)) for votes in tested]
            medians = [float(np.median(each[start : start + seeds])) for start in range(0, len(each), seeds)]
            found.append((told, len(tested[0]), medians))
    return found if len(found) > 1 else []


def settings_told(results: Results) -> list[tuple[str, str]]:
    """The settings that all runs share, flat, by their dotted names."""
    return list(_flat(results.arms[0].runs[0].origin.settings))


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, json.dumps(value, ensure_ascii=False)


def downloads(results: Results, charts: "Mapping[str, Chart]") -> list[Download]:
    """The figures of every run, as JSON and as a table, and the values of the charts."""
    rows = results.rows()
    flat = [{name: value for name, value in row.items() if not isinstance(value, Mapping)} for row in rows]
    for row, kinds in zip(flat, (row.get("kinds", {}) for row in rows), strict=True):
        row |= {f"{kind}/{name}": value for kind, found in kinds.items() for name, value in found.items()}
        for name in [name for name in row if name.endswith("_interval")]:
            row[f"{name}_low"], row[f"{name}_high"] = row.pop(name)
    values = [
        {"chart": name, "place": row.name, "what": what, "value": cell}
        for name, chart in charts.items()
        for row in chart.rows
        for what, cell in zip(chart.head, row.cells, strict=True)
        if cell
    ]
    return [
        _download("results.json", "every run's figures, for programs", "application/json", results_json(results)),
        _download("results.csv", "the same, for spreadsheets", "text/csv", _table(flat)),
        _download("charts.csv", "the values in this page's charts", "text/csv", _table(values)),
    ]


def results_json(results: Results) -> str:
    """The text of results.json: every run's figures."""
    return json.dumps(results.rows(), indent=1, allow_nan=False) + "\n"


def _download(name: str, about: str, kind: str, text: str) -> Download:
    encoded = base64.b64encode(text.encode("utf-8", errors="replace")).decode("ascii")
    return Download(name, about, f"data:{kind};charset=utf-8;base64,{encoded}")


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.writer(out)
    writer.writerow(map(as_cell, names))
    writer.writerows([as_cell(row.get(name, "")) for name in names] for row in rows)
    return out.getvalue()


def as_cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula gets an apostrophe in front, as people write one there."""
    return f"'{value}" if isinstance(value, str) and value.lstrip()[:1] in tuple("=+-@") else value
