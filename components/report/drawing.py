"""What all charts share: a style that takes its colours and its font from the page around it, axes, labels, SVG.

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

from components.evaluation.metrics import Values
from components.report.numbers import power

# Stand-ins that no chart uses otherwise; on the page each becomes a variable of the style sheet, light or dark.
INK, FAINT, GRID = "#000001", "#000002", "#000003"
VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", GRID: "var(--grid)"}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the layout is the same on every machine
    "font.size": 9.5,
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
LABEL_GAP = 11.5  # points between two labels


def new_axes(
    width: float, height: float, *, left: float = 40, right: float = 10, bottom: float = 30, top: float = 10
) -> Axes:
    """The axes of a new figure, with margins in points."""
    figure = Figure((width / 72, height / 72), facecolor="none")
    box = (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    return figure.add_axes(box)


def above(axes: Axes, x: float, text: str, *, lift: float = 4, color: str = INK, leftwards: bool) -> None:
    """Write a text over the axes, `lift` points above them, that ends or begins at x."""
    axes.annotate(
        text,
        xy=(x, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, lift),
        textcoords="offset points",
        color=color,
        ha="right" if leftwards else "left",
    )


def share(axes: Axes, along: str, value: float) -> float:
    """Where a value of the x or the y axis lies, as a share of the whole figure from its left or its top."""
    box, (x, y) = axes.get_position(), axes.transAxes.inverted().transform(axes.transData.transform((value, value)))
    return box.x0 + box.width * x if along == "x" else 1 - (box.y0 + box.height * y)


def log_floor(values: Values) -> tuple[float, bool] | None:
    """The power of ten where a log axis starts, and whether it stands for zero; None if nothing is positive."""
    positive = values[values > 0]
    if not len(positive):
        return None
    lowest = 10.0 ** math.floor(math.log10(positive.min()))
    zero = len(positive) < len(values)
    return (lowest / 10 if zero else lowest), zero


def log_axis(axes: Axes, floor: float, zero: bool, highest: float) -> None:
    """A y axis in powers of ten from `floor`, which is labelled 0 where it stands for zero, to above `highest`."""
    axes.set_yscale("log")
    axes.set_ylim(floor, max(10 * floor, 10.0 ** math.ceil(math.log10(highest))))
    axes.yaxis.set_major_locator(ticker.LogLocator(numticks=8))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_formatter(
        ticker.FuncFormatter(lambda value, _: "0" if zero and value <= floor else power(math.log10(value)))
    )


def percent_axis(axis: Axis, limit: float) -> None:
    """Label fractions of 1 up to `limit` as percent."""
    axis.set_major_locator(ticker.MaxNLocator(5))
    axis.set_major_formatter(ticker.PercentFormatter(1, decimals=0 if limit >= 0.1 else 1))


def nice_limit(highest: float) -> float:
    """Where an axis of fractions of 1 ends: a tenth above the highest of them, at most 1."""
    return min(1.0, max(0.1, math.ceil(11 * highest) / 10))


def label_ends(axes: Axes, ends: Mapping[str, tuple[float, float, str]]) -> None:
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
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: power(math.log10(value))))


def as_svg(axes: Axes, title: str) -> str:
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
