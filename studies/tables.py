"""A study's rows as tables for people: every seed in sight, medians beside them."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from components.config import Arm
from components.objective.commitment import ATTENUATION
from components.objective.tsallis import escape_time
from components.report.results import LEARNED
from studies.study import Study

Row = dict[str, Any]
NEVER = "-"


@dataclass(frozen=True)
class Table:
    """title: may be empty. rows: of text, as wide as head. note: what the columns mean, a sentence or more."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str

    def markdown(self) -> str:
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        title = f"### {self.title}\n\n" if self.title else ""
        return title + "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{self.note}\n"


def tables(study: Study, rows: Sequence[Row]) -> list[Table]:
    """Those that the study asks for, in its order."""
    return [table for name in study.tables for table in TABLES[name](study, rows)]


def markdown(study: Study, rows: Sequence[Row]) -> str:
    """The question and the tables."""
    return "\n".join([f"**{study.question}**\n", *(table.markdown() for table in tables(study, rows))])


def learned(study: Study, rows: Sequence[Row]) -> Iterator[Table]:
    """For each sweep maj@k of each seed, in percent, its median, that of p@1, and of each kind of problem."""
    maj, k = maj_of(rows)
    for sweep in study.sweeps:
        found = in_sweep(rows, sweep.name)
        changed = ", ".join(f"`{name}={value}`" for name, value in sweep.set.items() if name != "arms")
        seeds, kinds = _seeds(found), list(found[0].get("kinds", ()))
        stops = any(row.get("stopped") for row in found)
        head = ["arm", *(f"seed {seed}" for seed in seeds), "median", "p@1"]
        head += [*kinds, *(["kinds learned"] if kinds else []), *(["steps"] if stops else [])]
        lines = []
        for arm, runs in by_arm(found):
            each = {run["seed"]: f"{100 * run[maj]:.0f}" for run in runs}
            line = [arm, *(each.get(seed, "") for seed in seeds)]
            line += [f"**{_percent(runs, maj)}**", _percent(runs, "p_at_1")]
            line += [_percent([run["kinds"][kind] for run in runs], maj) for kind in kinds]
            line += [" ".join(str(kinds_learned(run)) for run in runs)] if kinds else []
            line += [" ".join(str(run["steps"] or "") for run in runs)] if stops else []
            lines.append(line)
        note = f"maj@{k} on held-out problems, percent; medians over seeds."
        if kinds:
            note += f" A kind is learned at maj@{k} of {100 * LEARNED:.0f}% or more; how many of them, by seed."
        if stops:
            ran = sum(row["steps"] or 0 for row in found)
            whole = max(row["steps"] or 0 for row in found) * sum(row["steps"] is not None for row in found)
            note += f" A race: {ran:,} steps, where all arms to the end would have taken {whole:,}."
        yield Table(f"{sweep.name}{f' ({changed})' if changed else ''}", head, lines, note)


def best(study: Study, rows: Sequence[Row]) -> Iterator[Table]:
    """For each sweep the best constant q, and whether those that move, and the one that the probe named, reach it."""
    maj, k = maj_of(rows)
    lines = []
    for sweep in study.sweeps:
        arms = [item for item in by_arm(in_sweep(rows, sweep.name)) if item[0] != "base"]
        constant = [item for item in arms if Arm.parse(item[0]).q is not None]
        top = max(constant, key=lambda item: median(run[maj] for run in item[1]))
        level = median(run[maj] for run in top[1])
        named = [arm for arm, runs in arms if runs[0].get("recommended")]
        for arm, runs in arms:
            if not Arm.parse(arm).moves and arm != top[0] and arm not in named:
                continue
            figure, (low, high) = median(run[maj] for run in runs), _interval(runs, maj)
            roles = {"best constant": arm == top[0], "the probe's": arm in named}
            role = ", ".join(name for name, has in roles.items() if has)
            told = f"{100 * figure:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            lines.append([sweep.name, arm, role, told, "yes" if level <= high else "no"])
    yield Table(
        "against the best constant q",
        ["sweep", "arm", "", f"maj@{k}", "reaches it"],
        lines,
        f"maj@{k} in percent, medians over seeds, with the 95% interval over problems of a typical seed. An arm reaches"
        " the best constant q where its interval holds that one's figure.",
    )


def forecasts(study: Study, rows: Sequence[Row]) -> Iterator[Table]:
    """For each sweep when half of the examples had P of 0.1, beside what the probe had forecast."""
    lines, notes = [], []
    for sweep in study.sweeps:
        arms = [item for item in by_arm(in_sweep(rows, sweep.name)) if item[0] != "base"]
        pairs = []
        for arm, runs in arms:
            forecast, happened = forecast_of(runs), median_step(runs)
            if math.isfinite(happened) or math.isfinite(forecast):
                pairs.append((forecast, happened))
            each = " ".join(str(run["escape_step"] or NEVER) for run in runs)
            told = _step(math.inf if runs[0]["forecast_step"] is None else runs[0]["forecast_step"])
            lines.append([sweep.name, arm, told, _step(happened), each, _ratio(forecast, happened)])
        notes.append(f"{sweep.name}: {_order(pairs)}")
    yield Table(
        "what the probe forecast",
        ["sweep", "arm", "forecast", "median", "each seed", "forecast / median"],
        lines,
        f"The step by which half of the examples have P = {ATTENUATION}: of validation problems, forecast from the base"
        f" model, and of training problems, in training. {NEVER} is never; a forecast behind the end of the run counts"
        f" as never. Order: {'; '.join(notes)}.",
    )


def slopes(study: Study, rows: Sequence[Row]) -> Iterator[Table]:
    """For each q the escape steps at each P of the start, and how they go with it on log axes."""
    runs = [row for sweep in study.sweeps for row in in_sweep(rows, sweep.name) if row["arm"] != "base"]
    lines = []
    for q in sorted({row["q"] for row in runs}):
        found = [row for row in runs if row["q"] == q]
        starts = sorted({start(row) for row in found}, reverse=True)
        by_start = {p0: [row["escape_step"] or NEVER for row in found if start(row) == p0] for p0 in starts}
        each = [f"{p0:g}: {' '.join(map(str, steps))}" for p0, steps in by_start.items()]
        lines.append([f"{q:g}", "; ".join(each), *slope_cells(found, q)])
    yield Table(
        "escape steps against P at the start",
        ["q", "P at the start: steps of each seed", "slope", "of time", "−(1 − q)", "closed form", "R² of log(1 / P)"],
        lines,
        f"The step by which half of the problems have P = {ATTENUATION}. Slope: of log steps against log P, least"
        " squares over all seeds that escaped. Of time: that of steps ‖∇ log P‖², the unit of time of the theory: the"
        " gradient at the start, measured in each run, for the starts do not share its length. Closed form: the"
        " same slope of the theory's own times to P = 0.1 from these starts, steeper than −(1 − q) where a start is not"
        " far below it. At q = 1 steps should go like log(1 / P).",
    )


def slope_cells(rows: Sequence[Row], q: float) -> list[str]:
    """Slope of steps and of time, the theory's, its closed form's, and at q = 1 how well steps go like log(1 / P)."""
    escaped = [row for row in rows if row["escape_step"] is not None]
    log_p0 = np.log([start(row) for row in escaped])
    steps = np.array([row["escape_step"] for row in escaped], dtype=float)
    if len(set(log_p0)) < 2:
        return [NEVER, NEVER, f"{q - 1:g}", NEVER, ""]
    lengths = np.array([row["grad_norm"] for row in escaped]) / np.exp((1 - q) * log_p0)  # of grad log P
    closed = [escape_time(float(log_p), q, ATTENUATION).item() for log_p in log_p0]
    measured = (f"{_slope(log_p0, np.log(times)):.2f}" for times in (steps, steps * lengths**2))
    fits = "" if q < 1 else f"{np.corrcoef(-log_p0, steps)[0, 1] ** 2:.3f}"
    return [*measured, f"{q - 1:g}", f"{_slope(log_p0, np.log(closed)):.2f}", fits]


def start(row: Row) -> float:
    return float(row["set"]["task.start"])


def kinds_learned(row: Row) -> int:
    [k] = {name for name in next(iter(row["kinds"].values())) if name.startswith("maj_at_")}
    return sum(found[k] >= LEARNED for found in row["kinds"].values())


TABLES: dict[str, Callable[[Study, Sequence[Row]], Iterator[Table]]] = {
    "learned": learned,
    "best": best,
    "forecasts": forecasts,
    "slopes": slopes,
}


def by_arm(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Each arm with its runs by seed."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["seed"] or 0):
        found.setdefault(row["arm"], []).append(row)
    return [(arm, found[arm]) for arm in dict.fromkeys(row["arm"] for row in rows)]


def in_sweep(rows: Sequence[Row], name: str) -> list[Row]:
    return [row for row in rows if row["sweep"] == name]


def _seeds(rows: Sequence[Row]) -> list[int]:
    return sorted({row["seed"] for row in rows} - {None})


def maj_of(rows: Sequence[Row]) -> tuple[str, str]:
    """The name of maj@k in rows, and k."""
    name = next(name for name in rows[0] if name.startswith("maj_at_") and not name.endswith("interval"))
    return name, name.removeprefix("maj_at_")


def _percent(runs: Sequence[Row], name: str) -> str:
    return f"{100 * median(run[name] for run in runs):.1f}"


def _interval(runs: Sequence[Row], name: str) -> tuple[float, float]:
    """That of a typical seed: the medians of both ends."""
    low, high = zip(*(run[f"{name}_interval"] for run in runs), strict=True)
    return median(low), median(high)


def median_step(runs: Sequence[Row]) -> float:
    """Over seeds; those that never escaped come last."""
    return median(math.inf if run["escape_step"] is None else run["escape_step"] for run in runs)


def forecast_of(runs: Sequence[Row]) -> float:
    """The step that the probe forecast; inf where that was never, or behind the end of the run."""
    forecast = runs[0]["forecast_step"]
    return math.inf if forecast is None or forecast > runs[0]["steps"] else forecast


def _step(step: float) -> str:
    return f"{step:.0f}" if math.isfinite(step) else NEVER


def _ratio(forecast: float, happened: float) -> str:
    """Forecast over outcome; in words where one of them is never."""
    if math.isinf(forecast):
        return "both never" if math.isinf(happened) else "missed"
    if math.isinf(happened):
        return "false alarm"
    return f"{forecast / happened:.2f}" if happened else ""


def _order(pairs: Sequence[tuple[float, float]]) -> str:
    """How many pairs of arms the forecasts have in the order in which they escaped; ties in either are no pair."""
    right = wrong = 0
    for place, (forecast, happened) in enumerate(pairs):
        for other_forecast, other_happened in pairs[:place]:
            if forecast != other_forecast and happened != other_happened:
                agrees = (forecast < other_forecast) == (happened < other_happened)
                right, wrong = right + agrees, wrong + (not agrees)
    return f"{right} of {right + wrong} pairs of arms right"


def _slope(x: Any, y: Any) -> float:
    return float(np.polyfit(x, y, 1)[0])
