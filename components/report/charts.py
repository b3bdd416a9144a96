"""The charts of the report, as SVG that takes its colours and its font from the page around it.

Matplotlib is slow to import: import this module where charts are drawn, not before.
"""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from components.config import Arm, Method
from components.evaluation.metrics import Values
from components.report.results import ArmResults, Results
from components.report.verdict import percent

# Stand-ins that no chart uses otherwise; on the page each becomes a variable of the style sheet, light or dark.
INK, FAINT, GRID, PAPER = "#000001", "#000002", "#000003", "#000004"
VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", GRID: "var(--grid)", PAPER: "var(--paper)"}

# One hue a method, told apart by colour-blind readers too (Paul Tol's vibrant scheme), and one marker.
HUES = {
    Method.GRPO: "#6f6f6f",
    Method.GARL: "#0077bb",
    Method.GARL_PLUGIN: "#009988",
    Method.GARL_DEBIASED: "#d0307f",
    Method.PAFT: "#e5701f",
}
MARKERS = {Method.GRPO: "X", Method.GARL: "o", Method.GARL_PLUGIN: "v", Method.GARL_DEBIASED: "D", Method.PAFT: "s"}

STYLE = {
    "svg.fonttype": "none",
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
WIDTH = 380  # points: as wide as a phone, half as wide as a desk
LABEL_GAP = 10.5  # points between two labels
MOST_POINTS = 150  # of a curve


def shade(arm: Arm, *, dark: bool) -> str:
    """The colour of an arm: its method's hue, the further from the background the higher q is."""
    hue = [int(HUES[arm.method][i : i + 2], 16) for i in (1, 3, 5)]
    weight = 0.0 if arm.q is None else 0.45 - 0.75 * arm.q
    target = (0 if dark else 255) if weight > 0 else (255 if dark else 0)
    if dark:
        weight -= 0.1
    return "#" + "".join(f"{round(part + (target - part) * abs(weight)):02x}" for part in hue)


def colour(results: Results, item: ArmResults) -> str:
    """The stand-in for an arm's colour, which the page knows as --arm-N, N its place in the order by q."""
    return f"#0101{results.ordered.index(item):02x}"


def maj_at_k(results: Results) -> str:
    """maj@k of every arm: a dot and an interval a seed, and the median where there are several."""
    spacing = 4.5
    heights = [max(20.0, spacing * len(item.runs) + 9) for item in results.ordered]
    figure, axes = _axes(WIDTH, sum(heights) + 46, left=104, right=40, bottom=30, top=16)
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
        _note(axes, -8, middle, item.label, ha="right")
        axes.annotate(percent(value), (1, middle), (6, 0), ("axes fraction", "data"), "offset points", va="center")
        top += height
    figures = [results.base, *(run.figures for item in results.arms for run in item.runs)]
    _percent_axis(axes.xaxis, limit := _nice_limit(max(found.maj_at_k.high for found in figures)))
    axes.set(xlim=(0, limit), ylim=(top, 0), yticks=[])
    base = results.base.maj_at_k
    axes.axvline(base.value, color=FAINT, linestyle=(0, (3, 2)), linewidth=1, clip_on=False)
    axes.annotate(
        f"base model {percent(base.value)}", (base.value, 1), (0, 4), ("data", "axes fraction"), "offset points",
        color=FAINT, ha="left" if base.value < limit / 2 else "right",
    )  # fmt: skip
    axes.set_xlabel(f"maj@{results.k} of {results.examples} {results.split} problems")
    return _svg(figure, f"maj@{results.k} of every arm with 95% intervals")


def curves(
    results: Results, column: str, what: str, *, log: bool = False, shares: bool = False, height: float = 235
) -> str | None:
    """A column of curves.csv over steps, a thin line a seed and the median over seeds thick; None if no arm has it."""
    found = {
        item.label: (item, lines)
        for item in results.ordered
        if (lines := [_line(run.curves, column) for run in item.runs if column in run.curves])
    }
    values = [values for _, lines in found.values() for _, values in lines]
    if not any(len(line) for line in values):
        return None
    floor = _floor(np.concatenate(values)) if log else None
    figure, axes = _axes(WIDTH, height, left=40, right=96, bottom=32)
    ends: dict[str, tuple[float, float, str]] = {}
    for label, (item, lines) in found.items():
        dash = "-" if item.arm.q is not None else (0, (4, 1.5))
        shown = [(steps, np.maximum(line, floor) if floor else line) for steps, line in lines if len(steps)]
        for steps, line in shown if len(shown) > 1 else []:
            axes.plot(steps, line, color=colour(results, item), linewidth=0.7, alpha=0.35, linestyle=dash)
        if shown:
            steps, line = _median(shown)
            single = {"marker": MARKERS[item.arm.method], "markersize": 3.5} if len(steps) < 12 else {}
            axes.plot(steps, line, color=colour(results, item), linewidth=1.7, linestyle=dash, clip_on=False, **single)
            ends[label] = (steps[-1], line[-1], colour(results, item))
    _scale(axes, floor, shares=shares)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    _label_ends(axes, ends)
    return _svg(figure, f"{what} over steps, a line an arm")


def problems(results: Results, item: ArmResults) -> str:
    """Accuracy on each problem, from the best to the worst; a thin line a seed."""
    figure, axes = _axes(180, 96, left=30, right=8, bottom=18, top=6)
    lines = [np.sort([sample.accuracy for sample in run.samples])[::-1] for run in item.runs]
    share = (np.arange(results.examples) + 0.5) / results.examples
    tint = colour(results, item)
    axes.fill_between(share, np.mean(lines, axis=0), step="mid", color=tint, alpha=0.3, linewidth=0)
    for line in lines:
        axes.step(share, line, where="mid", color=tint, linewidth=1.4 if len(lines) == 1 else 0.8, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    return _svg(figure, f"{item.label}: accuracy on each problem, sorted")


def probe(results: Results) -> str:
    """The histogram of log10 P of the untrained model; impossible answers at the far left."""
    found = results.probe
    logs = found.log_p[np.isfinite(found.log_p)] / math.log(10)
    impossible = len(found.log_p) - len(logs)
    reach = -math.log10(found.group_size)
    figure, axes = _axes(WIDTH, 190, left=34, right=14, bottom=34, top=30)
    low = math.floor(min([reach, *logs]))
    width = 0.25 if low > -8 else 0.5 if low > -20 else 1.0
    bins = np.arange(low, width / 2, width)
    heights, *_ = axes.hist(logs, bins=bins, color=INK, alpha=0.45, rwidth=0.92)
    if impossible:
        axes.bar(low - 3 * width, impossible, width=2 * width, color=INK, alpha=0.2)
    axes.set_xlim(low - (5 * width if impossible else width), 0.1)
    ticks = [tick for tick in ticker.MaxNLocator(6, integer=True).tick_values(low, 0) if low <= tick <= 0]
    labels = [_power(tick) for tick in ticks]
    axes.set_xticks([low - 3 * width, *ticks] if impossible else ticks, ["0", *labels] if impossible else labels)
    axes.set_ylim(0, 1.05 * max([*heights, impossible]))
    marks = {f"1/{found.group_size}: one right in a group": (reach, 15)}
    if len(found.log_p) > impossible and np.isfinite(np.median(found.log_p)):
        marks["median"] = (float(np.median(found.log_p)) / math.log(10), 4)
    for text, (x, lift) in marks.items():
        axes.axvline(x, color=INK, linewidth=1, linestyle=(0, (3, 2)))
        axes.annotate(
            text, (x, 1), (0, lift), ("data", "axes fraction"), "offset points", ha="right" if x > low / 2 else "left"
        )
    axes.yaxis.set_major_locator(ticker.MaxNLocator(4, integer=True))
    axes.set_xlabel("P of the untrained model")
    axes.set_ylabel("problems")
    return _svg(figure, "How often P of the untrained model has which size")


def _axes(
    width: float, height: float, *, left: float = 40, right: float = 10, bottom: float = 30, top: float = 10
) -> tuple[Figure, Axes]:
    """A figure and its axes with margins in points."""
    with matplotlib.rc_context(STYLE):
        figure = Figure((width / 72, height / 72), facecolor="none")
        box = (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
        return figure, figure.add_axes(box)
