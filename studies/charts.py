"""The figures of the studies' page, in the report's style."""

import math
from collections.abc import Mapping, Sequence
from statistics import median

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis

from components.config import Arm
from components.report import drawing
from studies.study import Study
from studies.tables import Row, by_arm, forecast_of, in_sweep, maj_of, median_step, start

ROW, SPACING, LABELS = 15, 3.2, 116  # points: of an arm, between two seeds, for the arms' names
STEPS = 250  # points of height
TICKS = (1, 3, 10, 30, 100, 300, 1000, 3000)


@matplotlib.rc_context(drawing.STYLE)
def learned(study: Study, rows: Sequence[Row], tints: Mapping[str, str]) -> dict[str, str]:
    """maj@k of every seed, and the median, of each sweep's arms."""
    maj, k = maj_of(rows)
    found = {}
    for sweep in study.sweeps:
        arms = by_arm(in_sweep(rows, sweep.name))
        heights = [max(ROW, SPACING * len(runs) + 5) for _, runs in arms]
        axes = drawing.new_axes(drawing.WIDTH, sum(heights) + 34, left=LABELS, right=36, bottom=28, top=6)
        top = 0.0
        for (arm, runs), height in zip(arms, heights, strict=True):
            middle, value = top + height / 2, median(run[maj] for run in runs)
            marker = "|" if arm == "base" else Arm.parse(arm).method.marker
            for number, run in enumerate(runs):
                y = middle + SPACING * (number - (len(runs) - 1) / 2)
                axes.plot(run[maj], y, marker, color=tints[arm], markersize=4, clip_on=False)
            axes.plot([value] * 2, [top + 2, top + height - 2], color=drawing.INK, linewidth=1.1, clip_on=False)
            beside = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
            axes.annotate(arm, (0, middle), (-8, 0), ha="right", **beside)
            axes.annotate(f"{100 * value:.0f}%", (1, middle), (6, 0), **beside)
            top += height
        drawing.percent_axis(axes.xaxis, 1.0)
        axes.set(xlim=(0, 1), ylim=(top, 0), yticks=[])
        axes.set_xlabel(f"maj@{k} of held-out problems")
        title = f"{sweep.name}: maj@{k} of every seed"
        found[title] = drawing.as_svg(axes, title)
    return found


@matplotlib.rc_context(drawing.STYLE)
def forecasts(study: Study, rows: Sequence[Row], tints: Mapping[str, str]) -> dict[str, str]:
    """For each sweep the forecast step of the escape against the median that happened; the band is a factor of 2."""
    found = {}
    for sweep in study.sweeps:
        arms = [item for item in by_arm(in_sweep(rows, sweep.name)) if item[0] != "base"]
        never = 2.0 * max(runs[0]["steps"] for _, runs in arms)
        axes = _log_axes(1, 1.5 * never, 1, 1.5 * never)
        line = np.array([1, never])
        axes.fill_between(line, line / 2, 2 * line, color=drawing.GRID, alpha=0.6, linewidth=0)
        for arm, runs in arms:
            x, y = (never if math.isinf(step) else max(1.0, step) for step in (forecast_of(runs), median_step(runs)))
            axes.plot(x, y, Arm.parse(arm).method.marker, color=tints[arm], markersize=6, clip_on=False)
            place, side = ((-5, 4), "right") if x == never else ((5, 4), "left")
            axes.annotate(arm, (x, y), place, textcoords="offset points", ha=side, fontsize=7, color=drawing.FAINT)
        for axis in (axes.xaxis, axes.yaxis):
            _step_axis(axis, [tick for tick in TICKS if tick < never / 2], never)
        axes.set_xlabel("forecast: step by which half are at P = 0.1")
        axes.set_ylabel("in training, median of seeds")
        title = f"{sweep.name}: what the probe forecast, and what happened"
        found[title] = drawing.as_svg(axes, title)
    return found


@matplotlib.rc_context(drawing.STYLE)
def slopes(study: Study, rows: Sequence[Row], tints: Mapping[str, str]) -> dict[str, str]:
    """Steps of the escape against P at the start, a mark a seed, and the line that was fitted, for each q."""
    runs = [row for sweep in study.sweeps for row in in_sweep(rows, sweep.name) if row["escape_step"] is not None]
    starts, steps = [start(row) for row in runs], [row["escape_step"] for row in runs]
    axes = _log_axes(2 * max(starts), min(starts) / 30, 0.7 * min(steps), 1.5 * max(steps))
    for arm, members in by_arm(runs):
        p0, taken = np.array([(start(run), run["escape_step"]) for run in members], dtype=float).T
        axes.plot(p0, taken, Arm.parse(arm).method.marker, color=tints[arm], markersize=4, alpha=0.8)
        if len(set(p0)) > 1:
            slope, level = np.polyfit(np.log(p0), np.log(taken), 1)
            ends = np.array([p0.max(), p0.min()])
            axes.plot(ends, np.exp(level) * ends**slope, color=tints[arm], linewidth=1.4)
            text = f"q={Arm.parse(arm).q_text}, slope {slope:.2f}".replace("-", "−")
            axes.annotate(text, (ends[1], np.exp(level) * ends[1] ** slope), (6, -3), textcoords="offset points")
    drawing.power_axis(axes.xaxis)
    _step_axis(axes.yaxis, [tick for tick in TICKS if 0.7 * min(steps) < tick < 1.5 * max(steps)])
    axes.set_xlabel("P at the start; colder to the right")
    axes.set_ylabel("step by which half are at P = 0.1")
    title = "escape steps against P at the start"
    return {title: drawing.as_svg(axes, title)}


CHARTS = {"learned": learned, "forecasts": forecasts, "slopes": slopes}


def _log_axes(left: float, right: float, bottom: float, top: float) -> Axes:
    axes = drawing.new_axes(drawing.WIDTH, STEPS, left=48, right=24, bottom=34, top=8)
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(bottom, top))
    return axes


def _step_axis(axis: Axis, ticks: Sequence[int], never: float | None = None) -> None:
    axis.set_ticks([*ticks, *([never] if never else [])], [*map(str, ticks), *(["never"] if never else [])])
    axis.set_minor_locator(ticker.NullLocator())
