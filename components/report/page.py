"""The report: one page that explains itself and needs no network, and results.json beside it."""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from components.forecast import Forecast, advice
from components.report import verdict
from components.report.results import Results, Samples, collect

if TYPE_CHECKING:
    from jinja2 import Template

ANSWER_PROBLEMS = 6  # whose answers are shown
COMMITMENTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # whose escape times are shown, beside those of the arms


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


def write_report(build: Path, arms: Sequence[str], seeds: Sequence[int], out: Path) -> Results:
    """Write out/index.html, results.json and two tables of curves from what the earlier steps left in the build folder.

    Raises:
        UserError: a file is missing or damaged, or not every run was evaluated on the same examples.
    """
    results = collect(build, arms, seeds)
    out.mkdir(parents=True, exist_ok=True)
    rows = json.dumps(results.rows(), indent=1, allow_nan=False)
    (out / "results.json").write_text(rows + "\n", encoding="utf-8")
    (out / "index.html").write_text(render(results), encoding="utf-8", errors="replace")
    for name, column in (("p", "train/p_estimate"), ("validation", f"validation/maj_at_{results.k}")):
        _write_curves(results, column, name, out / f"{name}.csv")
    return results


def _write_curves(results: Results, column: str, name: str, path: Path) -> None:
    """One figure of every arm and seed by step, a row each, as `dvc plots` draws them in one chart."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["arm", "seed", "step", name])
        for arm in results.arms:
            for run in arm.runs:
                known = zip(run.curves["step"].tolist(), run.curves.get(column, np.array([])).tolist(), strict=False)
                rows.writerows([arm.name, run.seed, int(step), value] for step, value in known if not math.isnan(value))


def render(results: Results) -> str:
    """The page. Equal results give equal bytes."""
    from markupsafe import Markup  # slow to import, and whoever imports this module may have come for something else

    charts = {name: Markup(svg) for name, svg in _charts(results).items()}
    return template("page.html.j2").render(
        results=results,
        headline=verdict.headline(results),
        rule=verdict.rule(results),
        outcomes=[(verdict.outcome(arm, results), verdict.succeeded(arm, results)) for arm in results.ordered],
        steps=verdict.steps(results),
        palette=_palette(results),
        charts=charts,
        kind_charts={kind: list(map(Markup, drawn)) for kind, drawn in _kind_charts(results).items()},
        problems=[Markup(svg) for svg in _problem_charts(results)],
        impossible=int(np.isinf(results.probe.log_p).sum()),
        escapes=escapes(results),
        p0=math.exp(typical_log_p0(results)),
        outlooks=(outlooks := _outlooks(results)),
        advice=advice([forecast for _, forecast, _, _ in outlooks]) if outlooks else "",
        answers=answers(results),
        runs=[(number, arm, run) for number, arm in enumerate(results.ordered) for run in arm.runs],
    )


def template(name: str, folder: Path = Path(__file__).parent) -> "Template":
    """A page of this room, or of another folder, which escapes what it is given and refuses to leave anything out."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": verdict.percent, "interval": verdict.interval, "scientific": scientific}
    return environment.get_template(name)


def scientific(value: float, digits: int = 2) -> str:
    """So many digits, and powers of ten as people write them: 0.012, 3.1 × 10⁻⁷."""
    from components.report.charts import SUPERSCRIPT

    if math.isinf(value):
        return f"over 10{'308'.translate(SUPERSCRIPT)}"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        rounded = f"{value:.{digits}g}"
        return rounded if "e" not in rounded and abs(value) < 10**digits else f"{value:,.0f}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(SUPERSCRIPT)}"


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


def _outlooks(results: Results) -> list[tuple[int, Forecast, str, str]]:
    """For each arm with a forecast: its place in the order by q, the forecast, its label, and in which step of each
    seed's training half of the examples had escaped."""
    forecasts = {item.arm: item for item in results.forecasts}
    found = []
    for number, arm in enumerate(results.ordered):
        if arm.name in forecasts:
            steps = ("never" if run.escape_step is None else str(run.escape_step) for run in arm.runs)
            found.append((number, forecasts[arm.name], arm.label, ", ".join(steps)))
    return found


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


def _palette(results: Results) -> list[tuple[str, str]]:
    from components.report.charts import shade

    return [(shade(item.arm, dark=False), shade(item.arm, dark=True)) for item in results.ordered]


def _charts(results: Results) -> dict[str, str]:
    from components.report import charts

    coarse = partial(charts.curves, results, points=20, height=170)
    drawn = {
        "maj": charts.maj_at_k(results),
        "probe": charts.probe(results),
        "p": charts.curves(results, "train/p_estimate", log=True),
        "validation": charts.curves(results, f"validation/maj_at_{results.k}", shares=True),
        "reward": charts.curves(results, "train/effective_reward", log=True),
        "norm": coarse("train/grad_norm", log=True),
        "samples": coarse("train/effective_samples"),
        "silent": coarse("train/groups_without_gradient"),
    }
    return {name: svg for name, svg in drawn.items() if svg is not None}


def _kind_charts(results: Results) -> dict[str, list[str]]:
    """P and maj@k over steps on each kind of problem, as far as the runs have them."""
    from components.report import charts

    coarse = partial(charts.curves, results, points=30, height=170)
    drawn = {
        kind: [
            coarse(f"train/kinds/{kind}/p_estimate", log=True),
            coarse(f"validation/kinds/{kind}/maj_at_{results.k}", shares=True),
        ]
        for kind in results.kinds
    }
    return {kind: [svg for svg in found if svg is not None] for kind, found in drawn.items()}


def _problem_charts(results: Results) -> Iterator[str]:
    from components.report import charts

    return (charts.problems(results, item) for item in results.ordered)
