"""What the theory says before any model is trained: its figures, for the terminal and on one page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from markupsafe import Markup
from matplotlib import ticker
from rich.table import Table

from components.config import Arm
from components.objective import tsallis
from components.objective.flow import escape_course, fitting_time
from components.report import drawing
from components.report.arms import shade
from components.report.numbers import scientific
from components.report.page import template

TARGET = 0.5  # the success probability that counts as escaped
OUTPUTS = (0.6, 0.3, 0.1)  # how often the data say each of three things, to show what a model makes of it
WARMEST, COLDEST = 0.3, 1e-6  # where the chart of escape times ends, or further out where p0 lies there
CURVE_POINTS = 150
LABEL_WIDTH = 36  # points
NEVER = "never"
LEAST = 1e-300  # below it a contamination is no more to be reached in floats than zero is


@dataclass(frozen=True)
class Row:
    """The figures of one commitment; times are in units of gradient-flow time.

    escape: from p0 to TARGET. order: its leading term. ratio: how often it is that of q = 1. colder: how often it is
    itself from a tenth of p0. flow: the same time by descending the gradient of the loss. shares: what a categorical
    model converges to for OUTPUTS. level: the probability at which a wrong label settles. half: the time to half of
    it, inf where it is never fitted. half_order: its leading term.
    """

    q: float
    escape: float
    order: float
    ratio: float
    colder: float
    flow: float
    shares: list[float]
    level: float
    half: float
    half_order: float

    @property
    def gap(self) -> float:
        """The relative difference of flow from escape."""
        return abs(self.flow / self.escape - 1)


@dataclass(frozen=True)
class Theory:
    """rows: by rising q, and so from the slowest escape to the fastest; source: in words, where p0 is from."""

    p0: float
    source: str
    noise: float
    rows: list[Row]


def work_out(p0: float, commitments: Sequence[float], noise: float, source: str) -> Theory:
    """Every figure of the page.

    Args:
        p0: P of the untrained model, in [1e-200, TARGET): below, axes leave the range of floats.
        commitments: values of q in [0, 1], in any order.
        noise: the fraction of examples with a wrong label, in (0, 1/2).
        source: in words, where p0 is from.

    Raises:
        ValueError: a number outside its range.
    """
    return Theory(p0, source, noise, [_row(math.log(p0), q, noise) for q in sorted(set(commitments))])


def _row(log_p0: float, q: float, noise: float) -> Row:
    escape, fastest, colder = (
        tsallis.escape_time(start, commitment, TARGET).item()
        for start, commitment in ((log_p0, q), (log_p0, 1.0), (log_p0 - math.log(10), q))
    )
    time, _ = escape_course(log_p0, q, TARGET)
    level = tsallis.contamination_level(noise, q)
    half, half_order = (
        rule(level / 2, noise, q) if level > LEAST else math.inf for rule in (fitting_time, tsallis.contamination_time)
    )
    return Row(
        q=q,
        escape=escape,
        order=tsallis.escape_time_order(log_p0, q).item(),
        ratio=escape / fastest,
        colder=colder / escape,
        flow=time[-1].item(),
        shares=tsallis.escort_minimiser(torch.tensor(OUTPUTS), q).tolist(),
        level=level,
        half=half,
        half_order=half_order,
    )


def title(theory: Theory) -> str:
    """What the page shows, in a sentence."""
    slow, fast = theory.rows[0], theory.rows[-1]
    if slow is fast:
        return f"From P = {scientific(theory.p0)}, q = {slow.q:g} escapes after {scientific(slow.escape)} units of time"
    times = scientific(slow.escape / fast.escape)
    return f"From P = {scientific(theory.p0)}, q = {fast.q:g} escapes {times} times sooner than q = {slow.q:g}"


HEADINGS = {
    "escape": "How long the escape takes",
    "flow": "Descent meets the closed form",
    "escort": "What a model converges to",
    "noise": "What wrong labels cost",
}


def told(theory: Theory) -> dict[str, str]:
    """A few plain sentences on each of HEADINGS."""
    ends = [theory.rows[-1], theory.rows[0]][: len(theory.rows)]  # the fastest and the slowest
    fitted = [row.half for row in theory.rows if math.isfinite(row.half)]
    return {
        "escape": f"The time of gradient flow from P = {scientific(theory.p0)} to {TARGET:g}. A start ten times colder"
        " takes " + " and ".join(f"{row.colder:.3g} times as long at q = {row.q:g}" for row in ends) + ".",
        "flow": "Descending the gradient of the loss in small steps, without the closed form, takes as long: the two"
        f" differ by {scientific(max(row.gap for row in theory.rows))} of the time at most.",
        "escort": "What becomes of a model whose data say three things this often. q = 1 gives the data back; the lower"
        " q, the more it says the most frequent thing, and at q = 0 nothing else.",
        "noise": f"{100 * theory.noise:.3g}% of the examples have the wrong one of two labels. "
        + "; ".join(
            f"q = {row.q:g} escapes after {scientific(row.escape)} and ends up saying the wrong label with probability"
            f" {scientific(row.level)}"
            for row in ends
        )
        + ". "
        + (
            f"A model that was sure of the right label is halfway there after {scientific(max(fitted))} or less."
            if fitted
            else "At such a q the wrong label is never fitted."
        ),
    }


def tables(theory: Theory) -> dict[str, Table]:
    """The figures for the terminal, within 80 columns; by subject, as `told`."""
    columns = {
        "escape": ["exact", "leading order", "against q = 1", "10× colder"],
        "flow": ["by descent", "closed form", "difference"],
        "escort": [f"said in {share:.0%}" for share in OUTPUTS],
        "noise": ["escape", "settles at", "halfway after", "leading order"],
    }
    found = {subject: Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0)) for subject in columns}
    for subject, names in columns.items():
        found[subject].add_column("q")
        for name in names:
            found[subject].add_column(name, justify="right")
    for row in theory.rows:
        cells = {
            "escape": [
                scientific(row.escape),
                scientific(row.order),
                f"{scientific(row.ratio)}×",
                f"{row.colder:.3g}×",
            ],
            "flow": [scientific(row.flow, 6), scientific(row.escape, 6), scientific(row.gap)],
            "escort": [scientific(share, 3) for share in row.shares],
            "noise": [scientific(row.escape), scientific(row.level), duration(row.half), duration(row.half_order)],
        }
        for subject, texts in cells.items():
            found[subject].add_row(f"{row.q:g}", *texts)
    return found


def duration(time: float) -> str:
    """A time in the theory's unit; an infinite one is never."""
    return NEVER if math.isinf(time) else scientific(time)


def write_page(path: Path, theory: Theory) -> None:
    """Write the page, and the folder it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(theory), encoding="utf-8")


def render(theory: Theory) -> str:
    """The page. Equal theories give equal bytes."""
    arms = [Arm.parse(f"garl-q{row.q:.6f}") for row in theory.rows]  # whose colours the report has
    return template("theory.html.j2").render(
        theory=theory,
        title=title(theory),
        headings=HEADINGS,
        told=told(theory),
        target=TARGET,
        outputs=OUTPUTS,
        duration=duration,
        palette=[(shade(arm, dark=False), shade(arm, dark=True)) for arm in arms],
        charts={
            draw.__name__: Markup(draw(theory)) for draw in (escape_times, escape_courses, escort_shares, noise_levels)
        },
    )


@matplotlib.rc_context(drawing.STYLE)
def escape_times(theory: Theory) -> str:
    """Escape time against p0 on log axes, warm at the left, a line a commitment."""
    coldest = min(COLDEST, 10.0 ** (math.floor(math.log10(theory.p0)) - 1))
    warmest = max(WARMEST, theory.p0)
    starts = np.geomspace(warmest, coldest, CURVE_POINTS)
    log_p0 = torch.from_numpy(starts).log()
    lines = [tsallis.escape_time(log_p0, row.q, TARGET).numpy() for row in theory.rows]
    axes = drawing.new_axes(drawing.WIDTH, 250, left=40, right=112, bottom=34, top=20)
    ends = {}
    for number, (row, line) in enumerate(zip(theory.rows, lines, strict=True)):
        axes.plot(starts, line, color=_tint(number), linewidth=1.7)
        axes.plot(theory.p0, row.escape, "o", color=_tint(number), markersize=4.5, markeredgewidth=0)
        slope = math.log(line[-1] / line[-2]) / math.log(starts[-1] / starts[-2])
        ends[f"q={row.q:g}, slope {slope:.2f}".replace("-", "−")] = (starts[-1], line[-1], _tint(number))
    drawing.power_axis(axes.xaxis)
    axes.set_xlim(warmest, coldest)
    drawing.log_axis(axes, 10.0 ** math.floor(math.log10(min(map(min, lines)))), False, max(map(max, lines)))
    axes.axvline(theory.p0, color=drawing.INK, linewidth=1, linestyle=(0, (3, 2)))
    far = math.log(theory.p0 / warmest) < math.log(coldest / warmest) / 2
    drawing.above(axes, theory.p0, f"P = {scientific(theory.p0)}", leftwards=far)
    axes.set_xlabel("P of the untrained model; colder to the right")
    drawing.label_ends(axes, ends)
    return drawing.as_svg(axes, "Escape time against P of the untrained model, a line a commitment")


@matplotlib.rc_context(drawing.STYLE)
def escape_courses(theory: Theory) -> str:
    """P over time by descending the gradient, and a ring where the closed form expects it; both on log axes."""
    axes = drawing.new_axes(drawing.WIDTH, 250, left=40, right=14, bottom=34, top=30)
    soonest = 10.0 ** math.floor(math.log10(theory.rows[-1].escape / 30))
    latest = theory.rows[0].escape
    for number, row in enumerate(theory.rows):
        time, log_p = (values.numpy() for values in escape_course(math.log(theory.p0), row.q, TARGET))
        shown = np.unique(np.linspace(0, len(time) - 1, CURVE_POINTS).round().astype(int))
        axes.plot(np.maximum(time[shown], soonest), np.exp(log_p[shown]), color=_tint(number), linewidth=1.7)
        ring = {"markerfacecolor": "none", "markeredgecolor": drawing.INK, "clip_on": False}
        axes.plot(row.escape, TARGET, "o", markersize=6, markeredgewidth=1, **ring)
    drawing.power_axis(axes.xaxis)
    axes.set_xlim(soonest, 2 * latest)
    drawing.log_axis(axes, 10.0 ** math.floor(math.log10(theory.p0)), False, 1.0)
    width = drawing.WIDTH - 54
    wanted = [width * math.log(row.escape / soonest) / math.log(2 * latest / soonest) for row in theory.rows]
    named = slice(None, None, math.ceil(LABEL_WIDTH * len(wanted) / width))  # as many as there is room for
    for row, place in zip(theory.rows[named], drawing.spread(wanted[named], LABEL_WIDTH, width), strict=True):
        axes.annotate(
            f"q={row.q:g}",
            xy=(row.escape, TARGET),
            xytext=(place / width, 1 + 12 / 186),
            textcoords="axes fraction",
            ha="center",
            arrowprops=drawing.LEADER | {"color": drawing.GRID, "relpos": (0.5, 0), "shrinkB": 4},
        )
    axes.set_xlabel("time of gradient flow")
    return drawing.as_svg(axes, "P over time under gradient flow, a line a commitment")


@matplotlib.rc_context(drawing.STYLE)
def escort_shares(theory: Theory) -> str:
    """The probability of each output against q."""
    axes = drawing.new_axes(drawing.WIDTH, 190, left=34, right=74, bottom=34)
    commitments = np.linspace(0, 1, CURVE_POINTS)
    curves = torch.stack([tsallis.escort_minimiser(torch.tensor(OUTPUTS), q) for q in commitments.tolist()]).numpy()
    for curve, style in zip(curves.T, ("-", (0, (5, 2)), (0, (1.5, 1.5))), strict=True):
        axes.plot(commitments, curve, color=drawing.INK, linewidth=1.5, linestyle=style, clip_on=False)
    for number, row in enumerate(theory.rows):
        axes.plot([row.q] * len(OUTPUTS), row.shares, "o", color=_tint(number), markersize=4.5, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    drawing.percent_axis(axes.yaxis, 1)
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.set_xlabel("commitment q")
    drawing.label_ends(axes, {f"said in {share:.0%}": (1, share, drawing.INK) for share in OUTPUTS})
    return drawing.as_svg(axes, "What a model converges to, against q")


@matplotlib.rc_context(drawing.STYLE)
def noise_levels(theory: Theory) -> str:
    """Where a wrong label settles against the escape time, along q from 0 to 1."""
    axes = drawing.new_axes(drawing.WIDTH, 230, left=40, right=44, bottom=34, top=14)
    log_p0 = torch.tensor(math.log(theory.p0))
    commitments = np.linspace(0, 1, CURVE_POINTS).tolist()
    times = [tsallis.escape_time(log_p0, q, TARGET).item() for q in commitments]
    levels = [tsallis.contamination_level(theory.noise, q) for q in commitments]
    axes.plot(times, levels, color=drawing.FAINT, linewidth=1.2, clip_on=False)
    drawing.power_axis(axes.xaxis)
    axes.set_xlim(10.0 ** math.floor(math.log10(times[-1])), 10.0 ** math.ceil(math.log10(times[0])))
    axes.set_ylim(0, 1.08 * theory.noise)
    axes.yaxis.set_major_locator(ticker.MaxNLocator(5))
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.set_xlabel("escape time")
    axes.set_title("probability of the wrong label in the end", loc="left", fontsize=8.5, color=drawing.FAINT)
    named = np.full(2, -np.inf)  # where the last label is, in points
    for number, row in reversed(list(enumerate(theory.rows))):
        axes.plot(row.escape, row.level, "o", color=_tint(number), markersize=6, markeredgewidth=0, clip_on=False)
        place = axes.transData.transform((row.escape, row.level)) * 72 / axes.figure.dpi
        if (abs(place - named) > (LABEL_WIDTH, drawing.LABEL_GAP)).any():
            axes.annotate(f"q={row.q:g}", (row.escape, row.level), (6, 5), textcoords="offset points")
            named = place
    return drawing.as_svg(axes, "Where a wrong label settles against the escape time, along q")


def _tint(number: int) -> str:
    """The stand-in for the colour of a commitment, which the page knows as --arm-N."""
    return f"#0101{number:02x}"
