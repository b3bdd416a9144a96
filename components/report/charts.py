"""The charts of the report, as SVG that takes its colours and its font from the page around it.

Matplotlib is slow to import: import this module where charts are drawn, not before.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from components.config import Arm, Method
from components.evaluation.metrics import Estimate, Values
from components.objective.commitment import Course
from components.report.results import ArmResults, Results
from components.report.verdict import percent

# Stand-ins that no chart uses otherwise; on the page each becomes a variable of the style sheet, light or dark.
INK, FAINT, GRID = "#000001", "#000002", "#000003"
VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", GRID: "var(--grid)"}

# One hue a method, those of the continuum told apart by colour-blind readers too (Paul Tol's vibrant scheme), the peers
# muted; and one marker.
HUES = {
    Method.GRPO: "#6f6f6f",
    Method.DR_GRPO: "#8a7f6a",
    Method.RLOO: "#6a7f8a",
    Method.MAXRL: "#7a5c3e",
    Method.STAR: "#5c6e3a",
    Method.GARL: "#0077bb",
    Method.GARL_PLUGIN: "#009988",
    Method.GARL_DEBIASED: "#d0307f",
    Method.GARL_SCORE: "#7d52c4",
    Method.PAFT: "#e5701f",
    Method.GARL_PAFT: "#a8552a",
}
MARKERS = {
    Method.GRPO: "^",
    Method.DR_GRPO: "<",
    Method.RLOO: ">",
    Method.MAXRL: "P",
    Method.STAR: "*",
    Method.GARL: "o",
    Method.GARL_PLUGIN: "v",
    Method.GARL_DEBIASED: "D",
    Method.GARL_SCORE: "d",
    Method.PAFT: "s",
    Method.GARL_PAFT: "X",
}
# The shade of a commitment that moves is that of a fixed one beside which it will hardly stand.
MOVING = {Course.LINEAR: 0.1, Course.COSINE: 0.3, Course.EACH: 0.45, Course.STEP: 0.65, Course.ADAPTIVE: 0.9}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the layout is the same on every machine
    "font.size": 8.5,
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "path.simplify": True,
}
LEADER = {"arrowstyle": "-", "linewidth": 0.9, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)}
WIDTH = 380  # points: as wide as a phone, half as wide as a desk
LABEL_GAP = 10.5  # points between two labels
MOST_POINTS = 60  # of a curve; fewer where single steps only hide the course
FEW_POINTS = 12  # are marked each
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def shade(arm: Arm, *, dark: bool) -> str:
    """The colour of an arm: its method's hue, the further from the background the higher q is."""
    hue = [int(HUES[arm.method][i : i + 2], 16) for i in (1, 3, 5)]
    q = 0.45  # of methods without one: their one shade is the hue itself, near enough
    if arm.commitment is not None:
        q = MOVING[arm.commitment.course] if arm.q is None else arm.q
    weight = 0.5 * q if dark else 0.28 - 0.63 * q
    target = 255 if weight > 0 else 0
    return "#" + "".join(f"{round(part + (target - part) * abs(weight)):02x}" for part in hue)


def colour(results: Results, item: ArmResults) -> str:
    """The stand-in for an arm's colour, which the page knows as --arm-N, N its place in the order by q."""
    return f"#0101{[arm.name for arm in results.ordered].index(item.name):02x}"


def label_margin(results: Results) -> float:
    """The points that the longest name of an arm takes beside a chart: those of the usual ones, or more."""
    return max(104, 8 + 4.8 * max(len(item.label) for item in results.arms))


@matplotlib.rc_context(STYLE)
def maj_at_k(results: Results) -> str:
    """maj@k of every arm: a dot and an interval a seed, and the median where there are several."""
    spacing = 4.5
    heights = [max(20.0, spacing * len(item.runs) + 9) for item in results.ordered]
    axes = _axes(WIDTH, sum(heights) + 46, left=label_margin(results), right=40, bottom=30, top=16)
    top = 0.0
    for item, height in zip(results.ordered, heights, strict=True):
        middle, tint = top + height / 2, colour(results, item)
        for number, run in enumerate(item.runs):
            y, found = middle + spacing * (number - (len(item.runs) - 1) / 2), run.figures.maj_at_k
            axes.plot([found.low, found.high], [y, y], color=tint, linewidth=1.4, alpha=0.6, clip_on=False)
            axes.plot(found.value, y, MARKERS[item.arm.method], color=tint, markersize=4.5, clip_on=False)
        value = item.figures.maj_at_k.value
        if len(item.runs) > 1:
            axes.plot([value] * 2, [top + 2, top + height - 2], color=INK, linewidth=1.3, clip_on=False)
        beside = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
        axes.annotate(item.label, (0, middle), (-8, 0), ha="right", **beside)
        axes.annotate(percent(value), (1, middle), (6, 0), **beside)
        top += height
    figures = [results.base, *(run.figures for item in results.arms for run in item.runs)]
    _percent_axis(axes.xaxis, limit := _nice_limit(max(found.maj_at_k.high for found in figures)))
    axes.set(xlim=(0, limit), ylim=(top, 0), yticks=[])
    base = results.base.maj_at_k
    axes.axvline(base.value, color=FAINT, linestyle=(0, (3, 2)), linewidth=1, clip_on=False)
    _above(axes, base.value, f"base model {percent(base.value)}", color=FAINT, leftwards=base.value > limit / 2)
    axes.set_xlabel(f"maj@{results.k} of {results.examples} {results.split} problems")
    return _svg(axes, f"maj@{results.k} of every arm with 95% intervals")


@matplotlib.rc_context(STYLE)
def curves(
    results: Results,
    column: str,
    *,
    log: bool = False,
    shares: bool = False,
    points: int = MOST_POINTS,
    height: float = 235,
) -> str | None:
    """A column of curves.csv over steps, a thin line a seed and the median over seeds thick; None if no arm has it."""
    found = {
        item.label: (item, lines)
        for item in results.ordered
        if (lines := [_line(run.curves, column, points) for run in item.runs if column in run.curves])
    }
    values = [values for _, lines in found.values() for _, values in lines]
    if not any(len(line) for line in values):
        return None
    floor, zero = (_floor(np.concatenate(values)) if log else None) or (None, False)
    axes = _axes(WIDTH, height, left=40, right=label_margin(results), bottom=32)
    ends: dict[str, tuple[float, float, str]] = {}
    for label, (item, lines) in found.items():
        shown = [(steps, np.maximum(line, floor) if floor else line) for steps, line in lines if len(steps)]
        style: dict[str, Any] = {"color": colour(results, item), "marker": MARKERS[item.arm.method]}
        for steps, line in shown if len(shown) > 1 else []:
            _draw(axes, steps, line, floor, linewidth=0.7, markersize=2, alpha=0.35, **style)
        if shown:
            steps, line = _median(shown)
            _draw(axes, steps, line, floor, linewidth=1.7, markersize=3.5, **style)
            ends[label] = (steps[-1], line[-1], style["color"])
    highest = max(line.max() for line in values if len(line))
    if floor:
        _log_axis(axes, floor, zero, highest)
    elif shares:
        _percent_axis(axes.yaxis, limit := _nice_limit(highest))
        axes.set_ylim(0, limit)
    else:
        axes.set_ylim(0, 1.05 * highest or 1)
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    axes.set_xlim(left=0)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    _label_ends(axes, ends)
    return _svg(axes, f"{column.partition('/')[2]} over steps, a line an arm")


@matplotlib.rc_context(STYLE)
def problems(results: Results, item: ArmResults) -> str:
    """Accuracy on each problem, from the best to the worst; a thin line a seed."""
    axes = _axes(180, 96, left=30, right=8, bottom=18, top=6)
    lines = [np.sort([sample.accuracy for sample in run.samples])[::-1] for run in item.runs]
    share = (np.arange(results.examples) + 0.5) / results.examples
    tint = colour(results, item)
    axes.fill_between(share, np.mean(lines, axis=0), step="mid", color=tint, alpha=0.3, linewidth=0)
    for line in lines:
        axes.step(share, line, where="mid", color=tint, linewidth=1.4 if len(lines) == 1 else 0.8, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    return _svg(axes, f"{item.label}: accuracy on each problem, sorted")


@matplotlib.rc_context(STYLE)
def probe(results: Results) -> str:
    """The histogram of log10 P of the untrained model; impossible answers at the far left."""
    found = results.probe
    logs = found.log_p[np.isfinite(found.log_p)] / math.log(10)
    impossible = len(found.log_p) - len(logs)
    reach = -math.log10(found.group_size)
    axes = _axes(WIDTH, 190, left=34, right=14, bottom=34, top=30)
    low = math.floor(min([reach, *logs]))
    width = 0.25 if low > -8 else 0.5 if low > -20 else 1.0
    bins = np.arange(low, width / 2, width)
    counts, _ = np.histogram(logs, bins)
    axes.bar(bins[:-1] + width / 2, counts, width=0.92 * width, color=INK, alpha=0.45)
    if impossible:
        axes.bar(low - 3 * width, impossible, width=2 * width, color=INK, alpha=0.2)
    axes.set_xlim(low - (5 * width if impossible else width), 0.1)
    ticks = [tick for tick in ticker.MaxNLocator(6, integer=True).tick_values(low, 0) if low <= tick <= 0]
    labels = [_power(tick) for tick in ticks]
    axes.set_xticks([low - 3 * width, *ticks] if impossible else ticks, ["0", *labels] if impossible else labels)
    axes.set_ylim(0, 1.05 * max(int(counts.max()), impossible))
    marks = {f"1/{found.group_size}: one right in a group": (reach, 15), "median": (found.median / math.log(10), 4)}
    for text, (x, lift) in marks.items():
        if math.isfinite(x):
            axes.axvline(x, color=INK, linewidth=1, linestyle=(0, (3, 2)))
            _above(axes, x, text, lift=lift, leftwards=x > low / 2)
    axes.yaxis.set_major_locator(ticker.MaxNLocator(4, integer=True))
    axes.set_xlabel("P of the untrained model")
    axes.set_ylabel("problems")
    return _svg(axes, "How often P of the untrained model has which size")


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
        _percent_axis(axes.xaxis, limit := _nice_limit(highest))
        axes.set(xlim=(0, limit), ylim=(len(labels) - 0.5, -0.5), yticks=range(len(labels)), title=name)
        axes.set_yticklabels(labels if axes is panels[0] else [])
    return _svg(panels[0], "Figures of every version with 95% intervals")


def _axes(
    width: float, height: float, *, left: float = 40, right: float = 10, bottom: float = 30, top: float = 10
) -> Axes:
    """The axes of a new figure, with margins in points."""
    figure = Figure((width / 72, height / 72), facecolor="none")
    box = (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    return figure.add_axes(box)


def _above(axes: Axes, x: float, text: str, *, lift: float = 4, color: str = INK, leftwards: bool) -> None:
    axes.annotate(
        text,
        xy=(x, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, lift),
        textcoords="offset points",
        color=color,
        ha="right" if leftwards else "left",
    )


def _line(curves: Mapping[str, Values], column: str, points: int) -> tuple[Values, Values]:
    """Steps and values where there are any, means over blocks of steps where there are too many to draw."""
    here = np.isfinite(curves[column])
    steps, values = curves["step"][here], curves[column][here]
    size = math.ceil(len(steps) / points) or 1
    if size == 1:
        return steps, values
    starts = np.arange(0, len(steps), size)
    counts = np.diff(starts, append=len(steps))
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def _median(lines: Sequence[tuple[Values, Values]]) -> tuple[Values, Values]:
    shortest = min((steps for steps, _ in lines), key=len)
    return shortest, np.median([values[: len(shortest)] for _, values in lines], axis=0)


def _draw(axes: Axes, steps: Values, line: Values, floor: float | None, *, marker: str, **style: Any) -> None:
    """A line, its points marked where they are few; zeros, which no log axis has a place for, as marks on its floor."""
    zero = line <= floor if floor else np.zeros(len(line), dtype=np.bool_)
    style |= {"markeredgewidth": 0, "clip_on": False}
    marked = marker if len(line) < FEW_POINTS or zero.any() else ""
    axes.plot(steps, np.where(zero, np.nan, line), linestyle="-", marker=marked, **style)
    axes.plot(steps[zero], line[zero], linestyle="none", marker=marker, **style)


def _floor(values: Values) -> tuple[float, bool] | None:
    """The power of ten where a log axis starts, and whether it stands for zero; None if nothing is positive."""
    positive = values[values > 0]
    if not len(positive):
        return None
    lowest = 10.0 ** math.floor(math.log10(positive.min()))
    zero = len(positive) < len(values)
    return (lowest / 10 if zero else lowest), zero


def _log_axis(axes: Axes, floor: float, zero: bool, highest: float) -> None:
    axes.set_yscale("log")
    axes.set_ylim(floor, max(10 * floor, 10.0 ** math.ceil(math.log10(highest))))
    axes.yaxis.set_major_locator(ticker.LogLocator(numticks=8))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_formatter(
        ticker.FuncFormatter(lambda value, _: "0" if zero and value <= floor else _power(math.log10(value)))
    )


def _percent_axis(axis: Axis, limit: float) -> None:
    axis.set_major_locator(ticker.MaxNLocator(5))
    axis.set_major_formatter(ticker.PercentFormatter(1, decimals=0 if limit >= 0.1 else 1))


def _nice_limit(highest: float) -> float:
    return min(1.0, max(0.1, math.ceil(11 * highest) / 10))


def _label_ends(axes: Axes, ends: Mapping[str, tuple[float, float, str]]) -> None:
    """Write each line's name beside its last point, moved apart where they would overlap."""
    box, figure = axes.get_position(), axes.get_figure()
    assert figure is not None
    width, height = (72 * figure.get_size_inches() * box.size).tolist()
    to_points = axes.transData + axes.transAxes.inverted()
    wanted = [height * to_points.transform((x, y))[1] for x, y, _ in ends.values()]
    for (label, (x, y, tint)), place in zip(ends.items(), spread(wanted, LABEL_GAP, height), strict=True):
        axes.annotate(
            label,
            xy=(x, y),
            xytext=(1 + 13 / width, place / height),
            textcoords="axes fraction",
            va="center",
            arrowprops=LEADER | {"color": tint},
        )


def spread(wanted: Sequence[float], gap: float, height: float) -> list[float]:
    """Places between 0 and height near the wanted ones, in their order and at least a gap apart while there is room."""
    gap = min(gap, height / max(1, len(wanted) - 1))
    order = np.argsort(wanted, kind="stable")
    places = np.array(wanted, dtype=np.float64)
    for before, after in pairwise(order):
        places[after] = max(places[after], places[before] + gap)
    limit = height
    for index in order[::-1]:
        places[index] = min(places[index], limit)
        limit = places[index] - gap
    return places.tolist()


def power_axis(axis: Axis) -> None:
    """A log axis whose ticks are powers of ten."""
    axis.axes.set_xscale("log")
    axis.set_major_locator(ticker.LogLocator(numticks=7))
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _power(math.log10(value))))


def _power(exponent: float) -> str:
    """A power of ten in Unicode, since a chart's text is the page's text."""
    return "1" if round(exponent) == 0 else "10" + str(round(exponent)).translate(SUPERSCRIPT)


def _svg(axes: Axes, title: str) -> str:
    """The figure as an <svg> element; equal figures give equal bytes."""
    out = io.StringIO()
    figure = axes.get_figure()
    assert figure is not None
    with matplotlib.rc_context({"svg.hashsalt": title}):  # ids of two charts differ, those of one never change
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = out.getvalue()
    view = re.search(r'viewBox="([^"]+)"', text)
    assert view is not None
    body = text[text.index(">", view.end()) + 1 :]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)  # would style the page
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # names of groups, the same in every chart
    body = re.sub(r'font-family: [^;"]+', "font-family: inherit", body)
    body = re.sub("|".join(VARIABLES), lambda match: VARIABLES[match[0]], body)
    body = re.sub(r"#0101([0-9a-f]{2})", lambda match: f"var(--arm-{int(match[1], 16)})", body)
    return f'<svg viewBox="{view[1]}" role="img" aria-label="{escape(title)}">{body}'
