"""The pictures of the continuum, drawn from the formulas of components/objective while the pages are built."""

from collections.abc import Callable
from functools import cache, partial

import matplotlib
import numpy as np
import torch
from matplotlib import ticker

from components.config import Arm
from components.data.skills import PREFERENCES
from components.objective import tsallis
from components.report import drawing, theory
from components.report.arms import shade

COMMITMENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
P0, NOISE = 1e-6, 0.1  # what `thaw theory` assumes where nothing was probed
KINDS = [one.skill * one.format for one in PREFERENCES["mixed"].values()]  # P of each kind of the embedded task
COLDEST = KINDS[-1]


@cache
def _found() -> theory.Theory:
    return theory.work_out(P0, COMMITMENTS, NOISE, "as an example")


@matplotlib.rc_context(drawing.STYLE)
def losses() -> str:
    """The loss of one problem against P, a line a commitment."""
    success = np.linspace(1, 0.004, 250)
    log_p = torch.from_numpy(success).log()
    axes = drawing.new_axes(drawing.WIDTH, 230, left=34, right=70, bottom=34, top=20)
    ends = {}
    for number, q in enumerate(COMMITMENTS):
        line = tsallis.loss(log_p, q).numpy()
        axes.plot(success, line, color=_tint(number), linewidth=1.7)
        ends[f"q={q:g}"] = (success[-1], line[-1], _tint(number))
    axes.set(xlim=(1, 0), ylim=(0, 5.7), xlabel="P, the probability of a right answer; colder to the right")
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.set_title("loss", loc="left", fontsize=8.5, color=drawing.FAINT)
    drawing.label_ends(axes, ends)
    return drawing.as_svg(axes, "The loss of one problem against P, a line a commitment")


@matplotlib.rc_context(drawing.STYLE)
def shares() -> str:
    """The weight of a problem's maximum-likelihood gradient against P, on log axes, warm at the left."""
    success = np.geomspace(1, COLDEST, 100)
    axes = drawing.new_axes(drawing.WIDTH, 240, left=40, right=60, bottom=34, top=20)
    ends = {}
    for number, q in enumerate(COMMITMENTS):
        line = tsallis.attenuation(torch.from_numpy(success).log(), q).numpy()
        axes.plot(success, line, color=_tint(number), linewidth=1.7)
        ends[f"q={q:g}"] = (success[-1], line[-1], _tint(number))
    drawing.power_axis(axes.xaxis)
    axes.set_xlim(1, COLDEST)
    drawing.log_axis(axes, COLDEST, False, 1.0)
    for p in KINDS[:-1]:
        axes.axvline(p, color=drawing.FAINT, linewidth=1, linestyle=(0, (3, 2)))
    axes.set_xlabel("P of a problem; colder to the right")
    axes.set_title("weight of its gradient, P to the power of 1 − q", loc="left", fontsize=8.5, color=drawing.FAINT)
    drawing.label_ends(axes, ends)
    return drawing.as_svg(axes, "The weight of a problem's gradient against P, a line a commitment")


def _tint(number: int) -> str:
    """The stand-in for the colour of a commitment, as components/report/theory.py has it."""
    return f"#0101{number:02x}"


def chart(draw: Callable[[], str]) -> str:
    """A chart as a block of HTML in a page, with the colours that the report gives GARL at each commitment."""
    arms = [Arm.parse(f"garl-q{q:g}") for q in COMMITMENTS]
    light, dark = (
        " ".join(f"--arm-{number}: {shade(arm, dark=dark)};" for number, arm in enumerate(arms))
        for dark in (False, True)
    )
    style = (
        f"body {{ {light} }} body[data-theme='dark'] {{ {dark} }}"
        f" @media (prefers-color-scheme: dark) {{ body:not([data-theme='light']) {{ {dark} }} }}"
    )
    return f"````{{raw}} html\n<style>{style}</style>\n<figure class='chart'>\n{draw()}\n</figure>\n````\n"


PICTURES: dict[str, Callable[[], str]] = {
    "losses": partial(chart, losses),
    "shares": partial(chart, shares),
    "escape": partial(chart, lambda: theory.escape_times(_found())),
    "courses": partial(chart, lambda: theory.escape_courses(_found())),
    "escort": partial(chart, lambda: theory.escort_shares(_found())),
    "noise": partial(chart, lambda: theory.noise_levels(_found())),
}
