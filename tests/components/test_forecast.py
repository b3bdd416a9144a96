"""What look-aheads let expect: extrapolation by hand, the choice of an arm, and what is said of it."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from components.errors import UserError
from components.evaluation.metrics import Estimate
from components.forecast import (
    ESCAPED,
    Forecast,
    Gradient,
    advice,
    advice_on_rl,
    escape_times,
    half_escape,
    half_escaped,
    out_of_reach,
    read,
    recommended,
    write,
)

INF = math.inf


def forecast(
    arm: str,
    gains: list[float | None],
    *,
    low: float = 0.5,
    step: float | None = 12.0,
    escaped: float = 0.0,
    rms: float = 0.001,
) -> Forecast:
    """All on their way at the same pace; escaped: the share of examples, the first ones, that end within the run."""
    before = [-10.0] * len(gains)
    after = [None if gain is None else -10 + gain for gain in gains]
    on_course = round(escaped * len(gains))
    # From where they were midway the line is steep, or flat.
    midway = [None if p is None else p - (5.0 if place < on_course else 0.0) for place, p in enumerate(after)]
    value = float(np.mean([gain for gain in gains if gain is not None]))
    gradient = Gradient(norm=0.5, rms=rms, epsilon=1e-8, agreement=0.9, effective_samples=None, bias=None)
    escape = (step, (10.0, None), 40)
    return Forecast(arm, 8, 1.0, 1.0, gradient, Estimate(value, low, value + 1), *escape, before, midway, after)


# Extrapolation


def test_log_p_goes_on_in_a_straight_line() -> None:
    midway = np.array([ESCAPED - 8, ESCAPED - 8, ESCAPED - 8, ESCAPED + 1, -INF, ESCAPED - 1, ESCAPED - 2])
    after = np.array([ESCAPED - 4, ESCAPED - 8, ESCAPED - 9, ESCAPED, ESCAPED - 8, -INF, ESCAPED + 2])
    assert escape_times(midway - 1, midway, after, 20).tolist() == [30, INF, INF, 0, INF, INF, 15]
    # One step has no middle: the line begins at the start.
    assert escape_times(midway, midway, after, 1).tolist() == pytest.approx([2, INF, INF, 0, INF, INF, 0.5])


def test_an_escape_in_the_first_half_counts_unless_it_is_lost_again() -> None:
    before = np.array([ESCAPED - 2, ESCAPED - 2, ESCAPED + 1, ESCAPED + 1, ESCAPED + 1])
    midway = np.array([ESCAPED + 2, ESCAPED + 2, ESCAPED, ESCAPED - 1, ESCAPED + 1])
    after = np.array([ESCAPED, ESCAPED - 1, ESCAPED, ESCAPED + 1, ESCAPED - 3])
    assert escape_times(before, midway, after, 20).tolist() == [5, INF, 0, 15, INF]


def test_half_of_the_examples_are_the_smaller_half() -> None:
    assert half_escaped(np.array([3.0, INF, 1.0, 2.0])) == 2
    assert half_escaped(np.array([3.0, INF, INF, 1.0, 2.0])) == 3
    assert half_escaped(np.array([[INF, INF, 1.0], [1.0, 2.0, INF]])).tolist() == [INF, 2]


def test_the_interval_of_the_escape_holds_it_and_may_end_in_never() -> None:
    step, (low, high) = half_escape(np.arange(101.0), resamples=500)
    assert step == 50
    assert low is not None
    assert high is not None
    assert 30 < low < 50 < high < 70
    assert half_escape(np.full(5, INF), resamples=10) == (None, (None, None))
    step, (low, high) = half_escape(np.array([1.0, 2.0, 3.0, INF, INF]), resamples=500)
    assert step == 3
    assert low is not None
    assert low < 3
    assert high is None


# Advice


def test_out_of_reach_is_what_a_whole_run_is_not_expected_to_hit() -> None:
    log_p = [math.log(0.1), math.log(1.1e-3), math.log(0.9e-3), None]
    assert out_of_reach(log_p, 1000) == 0.5


def test_stalling_is_said_in_so_many_words_and_with_its_share() -> None:
    cold, warm = math.log(1e-9), math.log(0.2)
    assert advice_on_rl([cold, None], 10_000, 0.0).startswith("RL stalls here: P of every example is so small")
    assert advice_on_rl([cold, warm], 10_000, 0.5).startswith("RL stalls here on 50% of the examples: ")
    assert "10,000 rollouts" in advice_on_rl([cold, warm], 10_000, 0.5)
    assert advice_on_rl([warm] * 30, 10_000, 0.42) == (
        "RL has a signal here: rewards would differ in 42.0% of the groups."
    )


def test_the_arm_that_brings_most_examples_out_is_recommended_however_far_another_raised_some() -> None:
    far = forecast("garl-q0.75", [6.0, 6.0, 6.0, 6.0], escaped=0.5)
    wide = forecast("garl-q1", [2.0, 2.0, 2.0, 2.0], escaped=1.0)
    assert far.escapes.tolist() == [1, 1, 0, 0]
    assert wide.escapes.tolist() == [1, 1, 1, 1]
    best, sure = recommended([far, wide])
    assert best is wide
    assert sure == pytest.approx(1 - 0.5**4, abs=0.03)  # unless the first two alone are drawn


def test_what_changes_later_is_recommended_only_where_there_is_nothing_else() -> None:
    moving = [forecast(arm, [9.0, 9.0]) for arm in ("garl-qadaptive", "garl-q1to0", "garl-paft-q1", "garl-qeach")]
    constant = forecast("garl-q1", [1.0, 1.0])
    assert recommended([*moving, constant]) == (constant, 1.0)
    assert recommended(moving)[0] in moving
    told = advice([*moving, constant])
    assert told.endswith(
        " Not compared, for what they do changes later: garl-qadaptive, garl-q1to0, garl-paft-q1, garl-qeach."
    )
    assert "Not compared" not in advice(moving)


def test_of_equal_arms_the_one_that_raised_log_p_most_is_recommended_and_how_sure_it_is() -> None:
    clear = [forecast("grpo", [-1.0, 0.0, -1.0, 0.5]), forecast("garl-q1", [4.0, 5.0, 6.0, 3.0])]
    best, sure = recommended(clear)
    assert (best.arm, sure) == ("garl-q1", 1.0)
    # Ahead by one example alone, which a share of (3/4)^4 of the resampled sets does not have.
    close = [forecast("garl-q0.5", [1.0, 1.0, 1.0, 1.0]), forecast("garl-q1", [1.0, 1.0, 1.0, 2.0])]
    best, sure = recommended(close)
    assert best.arm == "garl-q1"
    assert sure == pytest.approx(1 - 0.75**4, abs=0.05)


def test_examples_without_a_change_do_not_count_towards_how_sure_it_is() -> None:
    known = [forecast("garl-q0.5", [1.0, 2.0, None]), forecast("garl-q1", [2.0, 3.0, 9.0])]
    assert recommended(known)[1] == 1
    unknown = [forecast("garl-q0.5", [1.0, None]), forecast("garl-q1", [None, 9.0])]
    assert recommended(unknown) == (unknown[1], 0.5)


def test_the_advice_names_arm_gain_sureness_and_step() -> None:
    told = advice([forecast("grpo", [-1.0, -1.0]), forecast("garl-q1", [4.0, 5.0], low=3.5)])
    assert told == (
        "Train garl-q1: in 8 steps it changed mean log P of held-out examples by +4.5 nats [+3.5, +5.5], and 0% of them"
        " are on course to P = 0.1 within 40 steps, first of its peers in 100% of resampled sets of examples; half of"
        " them reach P = 0.1 at about step 12."
    )
    for never_or_from_the_start in (None, 0.0):
        told = advice([forecast("garl-q1", [4.0], step=never_or_from_the_start)])
        assert "half of them" not in told


def test_no_arm_is_recommended_where_none_rises_for_sure() -> None:
    told = advice([forecast("grpo", [0.0, 0.0], low=0.0), forecast("garl-q0", [0.1, -0.05], low=-0.1)])
    assert told.startswith("No arm got anywhere")
    assert "probe.look_ahead" in told


def test_steps_that_epsilon_shortens_are_told() -> None:
    """An element of the size of epsilon moves by half of the learning rate, and one without a gradient not at all."""
    arms = [
        forecast("grpo", [0.0], rms=0.0),
        forecast("garl-q0", [1.0], rms=1e-8),
        forecast("garl-q1", [2.0], rms=1e-7),
    ]
    assert advice(arms).endswith(
        " AdamW's epsilon (train.adam_epsilon = 1e-08) is not small against the gradients of some arms, and shortens"
        " their first steps to this share of the learning rate: garl-q0 50%."
    )
    assert "epsilon" not in advice(arms[::2])
    sgd = replace(arms[1], gradient=replace(arms[1].gradient, epsilon=None))
    assert "epsilon" not in advice([sgd])


# The file


def test_forecasts_come_back_from_their_file(tmp_path: Path) -> None:
    written = [forecast("grpo", [None, 1.0]), forecast("garl-q1", [2.0, 3.0], step=None)]
    write(tmp_path, written)
    assert read(tmp_path) == written
    assert read(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("damage", ["{", "[1]", '[{"arm": "grpo"}]'])
def test_a_damaged_file_is_named(damage: str, tmp_path: Path) -> None:
    (tmp_path / "forecast.json").write_text(damage)
    with pytest.raises(UserError, match=r"forecast.json is damaged or from another version; run `thaw probe` again"):
        read(tmp_path)
