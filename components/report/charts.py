"""The charts of the report: each a drawing and the table of the values in it.

Matplotlib is slow to import: import this module where charts are drawn, not before.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from components.evaluation.metrics import Estimate, Values
from components.report.drawing import (
    FAINT,
    INK,
    STYLE,
    WIDTH,
    above,
    as_svg,
    label_ends,
    log_axis,
    log_floor,
    new_axes,
    nice_limit,
    percent_axis,
    share,
)
from components.report.numbers import interval, percent, power, scientific
from components.report.results import ArmResults, Results

MOST_POINTS = 60  # of a curve; fewer where single steps only hide the course
FEW_POINTS = 12  # are marked each

Line = tuple[Values, Values]  # steps, and a value of each


@dataclass(frozen=True)
class Row:
    """A place in a chart and what stands there: `at` is a share of the drawing's width or height."""

    at: float
    name: str
    cells: list[str]


@dataclass(frozen=True)
class Chart:
    """A drawing and its values, a row a place along its x or y axis; places: of the columns' arms in the order by q."""

    svg: str
    along: str
    head: list[str]
    rows: list[Row]
    places: list[int | None] = field(default_factory=list)


def colour(results: Results, item: ArmResults) -> str:
    """The stand-in for an arm's colour, which the page knows as --arm-N, N its place in the order by q."""
    return f"#0101{results.place(item):02x}"


def label_margin(results: Results) -> float:
    """The points that the longest name of an arm takes beside a chart: those of the usual ones, or more."""
    return max(112, 8 + 5.4 * max(len(item.label) for item in results.arms))


@matplotlib.rc_context(STYLE)
def maj_at_k(results: Results) -> Chart:
    """maj@k of every arm: a dot and an interval a seed, and the median where there are several."""
    spacing = 4.5
    heights = [max(22.0, spacing * len(item.runs) + 9) for item in results.ordered]
    axes = new_axes(WIDTH, sum(heights) + 48, left=label_margin(results), right=46, bottom=32, top=16)
    top, middles = 0.0, []
    for item, height in zip(results.ordered, heights, strict=True):
        middle, tint = top + height / 2, colour(results, item)
        for number, run in enumerate(item.runs):
            y, found = middle + spacing * (number - (len(item.runs) - 1) / 2), run.figures.maj_at_k
            axes.plot([found.low, found.high], [y, y], color=tint, linewidth=1.4, alpha=0.6, clip_on=False)
            axes.plot(found.value, y, item.arm.method.marker, color=tint, markersize=5, clip_on=False)
        value = item.figures.maj_at_k.value
        if len(item.runs) > 1:
            axes.plot([value] * 2, [top + 2, top + height - 2], color=INK, linewidth=1.3, clip_on=False)
        beside = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
        axes.annotate(item.label, (0, middle), (-8, 0), ha="right", **beside)
        axes.annotate(percent(value), (1, middle), (8, 0), **beside)
        top += height
        middles.append(middle)
    figures = [results.base, *(run.figures for item in results.arms for run in item.runs)]
    percent_axis(axes.xaxis, limit := nice_limit(max(found.maj_at_k.high for found in figures)))
    axes.set(xlim=(0, limit), ylim=(top, 0), yticks=[])
    base = results.base.maj_at_k
    axes.axvline(base.value, color=FAINT, linestyle=(0, (3, 2)), linewidth=1, clip_on=False)
    above(axes, base.value, f"base model {percent(base.value)}", color=FAINT, leftwards=base.value > limit / 2)
    axes.set_xlabel(f"maj@{results.k} of {results.examples} {results.split} problems")
    rows = [
        Row(share(axes, "y", middle), item.label, [_each_seed(item), interval(item.figures.maj_at_k)])
        for item, middle in zip(results.ordered, middles, strict=True)
    ]
    svg = as_svg(axes, f"maj@{results.k} of every arm with 95% intervals")
    return Chart(svg, "y", [f"maj@{results.k}", "95% interval"], rows)


def _each_seed(item: ArmResults) -> str:
    """maj@k of an arm, and of each of its seeds."""
    value = percent(item.figures.maj_at_k.value)
    each = ", ".join(percent(run.figures.maj_at_k.value) for run in item.runs)
    return value if len(item.runs) == 1 else f"{value} (seeds: {each})"


@matplotlib.rc_context(STYLE)
def curves(
    results: Results,
    column: str,
    *,
    log: bool = False,
    shares: bool = False,
    points: int = MOST_POINTS,
    height: float = 245,
) -> Chart | None:
    """A column of curves.csv over steps, a thin line a seed and the median over seeds thick; None if no arm has it."""
    found = {
        item.label: (item, lines)
        for item in results.ordered
        if (lines := [_line(run.curves, column, points) for run in item.runs if column in run.curves])
    }
    values = [values for _, lines in found.values() for _, values in lines]
    if not any(len(line) for line in values):
        return None
    floor, zero = (log_floor(np.concatenate(values)) if log else None) or (None, False)
    axes = new_axes(WIDTH, height, left=44, right=label_margin(results), bottom=34)
    ends: dict[str, tuple[float, float, str]] = {}
    medians: dict[int, Line] = {}
    for label, (item, lines) in found.items():
        shown = [(steps, np.maximum(line, floor) if floor else line) for steps, line in lines if len(steps)]
        style: dict[str, Any] = {"color": colour(results, item), "marker": item.arm.method.marker}
        for steps, line in shown if len(shown) > 1 else []:
            _draw(axes, steps, line, floor, linewidth=0.7, markersize=2, alpha=0.35, **style)
        if shown:
            steps, line = _median(shown)
            _draw(axes, steps, line, floor, linewidth=1.8, markersize=4, **style)
            ends[label] = (steps[-1], line[-1], style["color"])
            medians[results.place(item)] = (steps, np.where(line <= floor, 0.0, line) if floor and zero else line)
    highest = max(line.max() for line in values if len(line))
    if floor:
        log_axis(axes, floor, zero, highest)
    elif shares:
        percent_axis(axes.yaxis, limit := nice_limit(highest))
        axes.set_ylim(0, limit)
    else:
        axes.set_ylim(0, 1.05 * highest or 1)
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    axes.set_xlim(left=0)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    label_ends(axes, ends)
    told = percent if shares else scientific if log else "{:.3g}".format
    svg = as_svg(axes, f"{column.partition('/')[2]} over steps, a line an arm")
    return Chart(svg, "x", list(ends), _rows_of_lines(axes, medians, told), list(medians))


def _rows_of_lines(axes: Axes, lines: Mapping[int, Line], told: Callable[[float], str]) -> list[Row]:
    """A row for each step that a line has a point at, a column a line."""
    by_line = [dict(zip(steps.round().astype(int).tolist(), line, strict=True)) for steps, line in lines.values()]
    return [
        Row(share(axes, "x", step), f"step {step}", [told(line[step]) if step in line else "" for line in by_line])
        for step in sorted({step for line in by_line for step in line})
    ]


@matplotlib.rc_context(STYLE)
def problems(results: Results, item: ArmResults) -> str:
    """Accuracy on each problem, from the best to the worst; a thin line a seed."""
    axes = new_axes(180, 98, left=34, right=12, bottom=20, top=6)
    lines = [np.sort([sample.accuracy for sample in run.samples])[::-1] for run in item.runs]
    places = (np.arange(results.examples) + 0.5) / results.examples
    tint = colour(results, item)
    axes.fill_between(places, np.mean(lines, axis=0), step="mid", color=tint, alpha=0.3, linewidth=0)
    for line in lines:
        axes.step(places, line, where="mid", color=tint, linewidth=1.4 if len(lines) == 1 else 0.8, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    return as_svg(axes, f"{item.label}: accuracy on each problem, sorted")


@matplotlib.rc_context(STYLE)
def probe(results: Results) -> Chart:
    """The histogram of log10 P of the untrained model; impossible answers at the far left."""
    found = results.probe
    logs = found.log_p[np.isfinite(found.log_p)] / math.log(10)
    impossible = len(found.log_p) - len(logs)
    reach = -math.log10(found.group_size)
    axes = new_axes(WIDTH, 205, left=38, right=14, bottom=36, top=32)
    low = math.floor(min([reach, *logs]))
    width = 0.25 if low > -8 else 0.5 if low > -20 else 1.0
    bins = np.arange(low, width / 2, width)
    counts, _ = np.histogram(logs, bins)
    axes.bar(bins[:-1] + width / 2, counts, width=0.92 * width, color=INK, alpha=0.45)
    if impossible:
        axes.bar(low - 3 * width, impossible, width=2 * width, color=INK, alpha=0.2)
    axes.set_xlim(low - (5 * width if impossible else width), 0.1)
    ticks = [tick for tick in ticker.MaxNLocator(6, integer=True).tick_values(low, 0) if low <= tick <= 0]
    labels = [power(tick) for tick in ticks]
    axes.set_xticks([low - 3 * width, *ticks] if impossible else ticks, ["0", *labels] if impossible else labels)
    axes.set_ylim(0, 1.05 * max(int(counts.max()), impossible))
    marks = {f"1/{found.group_size}: one right in a group": (reach, 17), "median": (found.median / math.log(10), 4)}
    for text, (x, lift) in marks.items():
        if math.isfinite(x):
            axes.axvline(x, color=INK, linewidth=1, linestyle=(0, (3, 2)))
            above(axes, x, text, lift=lift, leftwards=x > low / 2)
    axes.yaxis.set_major_locator(ticker.MaxNLocator(4, integer=True))
    axes.set_xlabel("P of the untrained model")
    axes.set_ylabel("problems")
    rows = [Row(share(axes, "x", low - 3 * width), "P = 0", [str(impossible)])] if impossible else []
    rows += [
        Row(
            share(axes, "x", (left + right) / 2),
            f"P {scientific(10.0**left)} to {scientific(10.0**right)}",
            [f"{count}"],
        )
        for left, right, count in zip(bins, bins[1:], counts, strict=False)
        if count
    ]
    return Chart(as_svg(axes, "How often P of the untrained model has which size"), "x", ["problems"], rows)


@matplotlib.rc_context(STYLE)
def versions(labels: Sequence[str], figures: Sequence[Mapping[str, Estimate]], names: Sequence[str]) -> str:
    """A panel a figure (`maj@16`), in it a row a version: a dot and its 95% interval; nothing where there is none."""
    margin, panel, gap, height = 150, 160, 32, 16 * len(labels) + 40
    width = margin + len(names) * (panel + gap)
    figure = Figure((width / 72, height / 72), facecolor="none")
    size = (panel / width, (height - 40) / height)
    panels = [figure.add_axes(((margin + n * (panel + gap)) / width, 22 / height, *size)) for n in range(len(names))]
    for axes, name in zip(panels, names, strict=True):
        for row, found in enumerate(figures):
            if (estimate := found.get(name)) is not None:
                axes.plot([estimate.low, estimate.high], [row, row], color=INK, linewidth=1.4, alpha=0.45)
                axes.plot(estimate.value, row, "o", color=INK, markersize=4, clip_on=False)
        highest = max([found[name].high for found in figures if name in found], default=1.0)
        percent_axis(axes.xaxis, limit := nice_limit(highest))
        axes.set(xlim=(0, limit), ylim=(len(labels) - 0.5, -0.5), yticks=range(len(labels)), title=name)
        axes.set_yticklabels(labels if axes is panels[0] else [])
    return as_svg(panels[0], "Figures of every version with 95% intervals")


def _line(curves: Mapping[str, Values], column: str, points: int) -> Line:
    """Steps and values where there are any, means over blocks of steps where there are too many to draw."""
    here = np.isfinite(curves[column])
    steps, values = curves["step"][here], curves[column][here]
    size = math.ceil(len(steps) / points) or 1
    if size == 1:
        return steps, values
    starts = np.arange(0, len(steps), size)
    counts = np.diff(starts, append=len(steps))
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def _median(lines: Sequence[Line]) -> Line:
    shortest = min((steps for steps, _ in lines), key=len)
    return shortest, np.median([values[: len(shortest)] for _, values in lines], axis=0)


def _draw(axes: Axes, steps: Values, line: Values, floor: float | None, *, marker: str, **style: Any) -> None:
    """A line, its points marked where they are few; zeros, which no log axis has a place for, as marks on its floor."""
    zero = line <= floor if floor else np.zeros(len(line), dtype=np.bool_)
    style |= {"markeredgewidth": 0, "clip_on": False}
    marked = marker if len(line) < FEW_POINTS or zero.any() else ""
    axes.plot(steps, np.where(zero, np.nan, line), linestyle="-", marker=marked, **style)
    axes.plot(steps[zero], line[zero], linestyle="none", marker=marker, **style)
