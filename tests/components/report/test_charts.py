"""What the charts decide before they draw: colours, places of labels, where a log axis starts."""

import math

import matplotlib
import numpy as np
import pytest
from matplotlib.textpath import TextPath

from components.config import Arm
from components.methods import Method
from components.objective.commitment import Course
from components.report import charts, drawing
from components.report.arms import MOVING, shade
from components.report.reading import collect


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_every_method_has_a_name_a_hue_and_a_marker_of_its_own() -> None:
    for fact in ("label", "hue", "marker"):
        assert len({getattr(method, fact) for method in Method}) == len(Method)


@pytest.mark.parametrize("method", [method for method in Method if method.learns_from == "reward"])
def test_methods_without_a_commitment_stand_out_too(method: Method) -> None:
    arm = Arm.parse(method.value)
    assert luminance(shade(arm, dark=True)) > 0.1
    assert luminance(shade(arm, dark=False)) < 0.5


def test_every_commitment_that_moves_has_a_shade_of_its_own() -> None:
    assert MOVING.keys() == set(Course) - {Course.CONSTANT}
    arms = ["garl-q1to0", "garl-q1to0-cosine", "garl-q1to0-at0.5", "garl-qadaptive", "garl-qeach"]
    for dark in (False, True):
        assert len({shade(Arm.parse(arm), dark=dark) for arm in arms}) == len(arms)


@pytest.mark.parametrize("arm", ["grpo", "garl-score-q1to0-cosine", "garl-debiased-q0.75to0.25-at0.5"])
def test_there_is_room_for_the_longest_label(builder, arm: str) -> None:
    results = collect(builder(["garl-q1", arm], [0]), ["garl-q1", arm], [0])
    with matplotlib.rc_context(drawing.STYLE):
        width = TextPath((0, 0), results.arms[1].label, size=drawing.STYLE["font.size"]).get_extents().width
    assert charts.label_margin(results) >= width + 8


@pytest.mark.parametrize("method", [method for method in Method if method.learns_from == "likelihood"])
def test_a_higher_q_stands_out_more(method: str) -> None:
    arms = [Arm.parse(f"{method}-q{q}") for q in (0, 0.25, 0.5, 0.75, 1)]
    light = [luminance(shade(arm, dark=False)) for arm in arms]
    dark = [luminance(shade(arm, dark=True)) for arm in arms]
    assert light == sorted(light, reverse=True)
    assert dark == sorted(dark)
    assert min(dark) > 0.1
    assert max(light) < 0.5


def test_labels_keep_apart_and_in_order() -> None:
    wanted = [5.0, 50.0, 4.0, 98.0, 99.0]
    places = drawing.spread(wanted, 10, 100)
    assert list(np.argsort(places)) == list(np.argsort(wanted))
    assert np.diff(sorted(places)).min() >= 10 - 1e-9
    assert min(places) >= 0
    assert max(places) <= 100
    assert places[1] == 50


def test_labels_share_a_space_too_small() -> None:
    places = drawing.spread([1.0] * 30, 10, 100)
    assert min(places) >= -1e-9
    assert max(places) <= 100 + 1e-9
    assert np.diff(places) == pytest.approx([100 / 29] * 29)


def test_log_axis_starts_below_the_smallest_value() -> None:
    assert drawing.log_floor(np.array([3e-5, 1.0])) == (pytest.approx(1e-5), False)
    assert drawing.log_floor(np.array([0.0, 3e-5])) == (pytest.approx(1e-6), True)
    assert drawing.log_floor(np.zeros(3)) is None


def test_long_curves_are_drawn_as_block_means() -> None:
    curves = {"step": np.arange(1.0, 8.0), "x": np.array([1.0, 3.0, math.nan, 5.0, 7.0, 9.0, 9.0])}
    steps, values = charts._line(curves, "x", 3)
    assert steps.tolist() == [1.5, 4.5, 6.5]
    assert values.tolist() == [2.0, 6.0, 9.0]
    assert charts._line(curves, "x", 6)[1].tolist() == [1.0, 3.0, 5.0, 7.0, 9.0, 9.0]
