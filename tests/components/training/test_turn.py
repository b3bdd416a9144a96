"""What an arm does at each step: its estimator, its commitment, and why it changes either."""

import math
import re
from itertools import pairwise

import pytest

from components.config import Arm
from components.methods import Method
from components.objective.commitment import ATTENUATION, adaptive
from components.training.turn import CHANCE, FALLEN, WINDOW, Turn

STEPS = 8


def commitments(arm: str, steps: int = STEPS) -> list[float | None]:
    return [Turn.at(Arm.parse(arm), step, steps, []).q for step in range(steps)]


# What does not move


@pytest.mark.parametrize("arm", ["grpo", "dr-grpo", "rloo", "maxrl", "star"])
def test_arms_that_learn_from_rewards_have_no_commitment(arm: str) -> None:
    assert Turn.at(Arm.parse(arm), 3, STEPS, [{"step": 1}]) == Turn(Method(arm), None)


@pytest.mark.parametrize("arm", ["garl-q0", "garl-q0.75", "garl-plugin-q1", "garl-score-q0.5", "paft-q0.75"])
def test_a_fixed_commitment_stays_and_is_no_curve(arm: str) -> None:
    parsed = Arm.parse(arm)
    assert commitments(arm) == [parsed.q] * STEPS
    turn = Turn.at(parsed, 0, STEPS, [])
    assert (turn.method, turn.reason) == (parsed.method, "")
    assert turn.figures(parsed, -3.0, []) == {}


def test_examples_with_their_own_commitment_leave_the_step_without_one() -> None:
    arm = Arm.parse("garl-qeach")
    turn = Turn.at(arm, 5, STEPS, [])
    assert turn == Turn(Method.GARL, None)
    assert turn.figures(arm, -3.0, []) == {}


# By the clock


def test_schedules_go_by_the_share_of_steps_done() -> None:
    assert commitments("garl-q1to0") == [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert commitments("paft-q0to1", 4) == [0, 0.25, 0.5, 0.75]
    assert commitments("garl-q1to0-at0.5") == [1, 1, 1, 1, 0, 0, 0, 0]
    assert commitments("garl-q0.9to0.1-at0.7", 10) == [0.9] * 7 + [0.1] * 3
    assert commitments("garl-q1to0-cosine", 4) == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_what_was_measured_is_nothing_to_a_schedule() -> None:
    arm, curves = Arm.parse("garl-q1to0"), [{"train/p_estimate": 0.9, "train/q": 0.1, "train/log_p": -0.1}]
    turn = Turn.at(arm, 1, STEPS, curves)
    assert turn == Turn(Method.GARL, 0.875)
    assert turn.figures(arm, -3.0, curves) == {"train/q": 0.875}


# By P


def follow_log_p(arm: Arm, measured: list[float | None]) -> list[dict[str, float]]:
    """The rows of an arm whose steps find these means of log P."""
    curves: list[dict[str, float]] = []
    for step, log_p in enumerate(measured):
        turn = Turn.at(arm, step, len(measured), curves)
        curves.append(turn.figures(arm, log_p, curves))
    return curves


def test_an_adaptive_commitment_starts_at_one_and_follows_the_running_mean() -> None:
    """Log P in units of log 10: -10, then 0.9 * -10 + 0.1 * -5 = -9.5, then 0.9 * -9.5 + 0.1 * 0 = -8.55."""
    ten = math.log(10)
    rows = follow_log_p(Arm.parse("garl-qadaptive"), [-10 * ten, -5 * ten, 0.0, -8.55 * ten])
    assert [row["train/log_p"] / ten for row in rows] == pytest.approx([-10, -9.5, -8.55, -8.55])
    # 1, then q(10^-10) = 0.9; q(10^-9.5) = 0.895 and q(10^-8.55) = 0.883 are too near to be taken
    assert [row["train/q"] for row in rows] == pytest.approx([1, 0.9, 0.9, 0.9])


def test_an_adaptive_commitment_comes_down_as_the_model_warms() -> None:
    rows = follow_log_p(Arm.parse("paft-qadaptive"), [-20.0] * 5 + [-0.5] * 60)
    q = [row["train/q"] for row in rows]
    assert q == sorted(q, reverse=True)
    assert q[5] == adaptive(-20)
    assert q[-1] < 0.05
    moves = [before - after for before, after in pairwise(q) if before != after]
    assert len(moves) > 5
    assert min(moves) >= 0.05


def test_steps_without_any_chance_leave_the_running_mean_as_it_was() -> None:
    rows = follow_log_p(Arm.parse("garl-qadaptive"), [None, None, -20.0, None, -20.0])
    assert rows[:2] == [{"train/q": 1}] * 2
    assert [row["train/log_p"] for row in rows[2:]] == [-20] * 3
    assert [row["train/q"] for row in rows[2:]] == [1, adaptive(-20), adaptive(-20)]


# By phase

PHASED = Arm.parse("garl-paft-q0.75")


def after(p: list[float], phase: float = 0.0) -> Turn:
    """The turn behind steps of this P."""
    curves = [{"train/p_estimate": value, "train/phase": phase} for value in p]
    return Turn.at(PHASED, len(p), 1000, curves)


def test_training_begins_with_garl() -> None:
    turn = after([])
    assert turn == Turn(Method.GARL, 0.75)
    assert turn.figures(PHASED, -3.0, []) == {"train/phase": 0}


def test_a_fall_behind_a_warm_peak_brings_paft_for_a_reason() -> None:
    """Behind n low steps of ten the mean is 0.6 - 0.04 n, with an error of 0.4 sqrt(n / 10 (1 - n / 10) / 9).

    A fall of 0.24 at n = 6 has 4 errors of 0.0653, not enough; 0.28 at n = 7 has 4 errors of 0.0611.
    """
    assert after([0.6] * 20 + [0.2] * 6).method is Method.GARL
    turn = after([0.6] * 20 + [0.2] * 7)
    assert turn == Turn(Method.PAFT, 0.75, "the mean P of 10 steps fell from 0.6 to 0.32")
    assert turn.figures(PHASED, -3.0, []) == {"train/phase": 1}


@pytest.mark.parametrize(
    ("now", "method"), [(0.49, Method.GARL), (0.481, Method.GARL), (0.479, Method.PAFT), (0.3, Method.PAFT)]
)
def test_a_fall_counts_from_a_fifth_of_the_peak_on(now: float, method: Method) -> None:
    assert FALLEN == 0.8
    assert after([0.6] * WINDOW + [now] * WINDOW).method is method


@pytest.mark.parametrize(("swing", "method"), [(0.10, Method.PAFT), (0.11, Method.GARL)])
def test_a_fall_counts_where_chance_does_not_explain_it(swing: float, method: Method) -> None:
    """From 0.6 to 0.4 with steps that swing by s: each mean has an error of s / 3, their difference of 0.4714 s.

    Four of these errors are 0.189 or 0.207, and the fall is 0.2.
    """
    assert CHANCE == 4
    swings = [swing, -swing] * (WINDOW // 2)
    falls = [0.6 + s for s in swings] + [0.4 + s for s in swings]
    assert after(falls).method is method


def test_a_fall_of_what_was_still_cold_is_none() -> None:
    for peak, method in ((1.01 * ATTENUATION, Method.PAFT), (0.99 * ATTENUATION, Method.GARL)):
        assert after([peak] * WINDOW + [0.01] * WINDOW).method is method


def test_nothing_is_judged_before_there_are_enough_steps() -> None:
    assert after([0.9] + [0.1] * (WINDOW - 2)).method is Method.GARL
    assert after([0.9] * (WINDOW - 1)).method is Method.GARL


def test_a_rise_and_a_plateau_are_stable() -> None:
    rise = [step / 100 for step in range(100)]
    for length in range(len(rise)):
        assert after(rise[:length]).method is Method.GARL
    assert after(rise + [0.95] * 50).method is Method.GARL


def test_there_is_no_way_back_and_the_reason_is_told_once() -> None:
    curves = [{"train/p_estimate": 0.6, "train/phase": 0.0} for _ in range(WINDOW)]
    turns = []
    for step in range(WINDOW, 60):
        turn = Turn.at(PHASED, step, 60, curves)
        turns.append(turn)
        p = 0.2 if step < 40 else 0.9
        curves.append({"train/p_estimate": p} | turn.figures(PHASED, math.log(p), curves))
    phases = [row["train/phase"] for row in curves]
    assert phases == sorted(phases)
    assert 10 < phases.index(1) < 30
    [reason] = [turn.reason for turn in turns if turn.reason]
    assert re.fullmatch(r"the mean P of 10 steps fell from 0\.6 to 0\.\d+", reason)
    assert turns[-1] == Turn(Method.PAFT, 0.75)


def test_a_phase_and_a_commitment_can_both_move() -> None:
    arm = Arm.parse("garl-paft-q1to0")
    curves = [{"train/p_estimate": p, "train/phase": 0.0, "train/q": 1.0} for p in [0.6] * WINDOW + [0.1] * WINDOW]
    turn = Turn.at(arm, 20, 40, curves)
    assert (turn.method, turn.q) == (Method.PAFT, 0.5)
    assert turn.figures(arm, -3.0, curves) == {"train/q": 0.5, "train/phase": 1}
