"""Commitments: how they are read and written, where schedules stand, and what follows from P."""

import math

import pytest

from components.objective.commitment import (
    ATTENUATION,
    HYSTERESIS,
    Commitment,
    Course,
    adaptive,
    follow,
    running_mean,
)

# Reading and writing


@pytest.mark.parametrize(
    ("text", "commitment"),
    [
        ("0", Commitment(Course.CONSTANT, 0.0, 0.0)),
        ("0.75", Commitment(Course.CONSTANT, 0.75, 0.75)),
        ("1", Commitment(Course.CONSTANT, 1.0, 1.0)),
        ("0.1234567", Commitment(Course.CONSTANT, 0.1234567, 0.1234567)),
        ("0.00001", Commitment(Course.CONSTANT, 1e-5, 1e-5)),
        ("1to0", Commitment(Course.LINEAR, 1.0, 0.0)),
        ("0.25to0.9", Commitment(Course.LINEAR, 0.25, 0.9)),
        ("1to0-cosine", Commitment(Course.COSINE, 1.0, 0.0)),
        ("1to0-at0.5", Commitment(Course.STEP, 1.0, 0.0, 0.5)),
        ("0.9to0.1-at0.125", Commitment(Course.STEP, 0.9, 0.1, 0.125)),
        ("adaptive", Commitment(Course.ADAPTIVE)),
        ("each", Commitment(Course.EACH)),
    ],
)
def test_every_form_is_read_and_written_back(text: str, commitment: Commitment) -> None:
    assert Commitment.parse(text) == commitment
    assert str(commitment) == text


@pytest.mark.parametrize(
    ("text", "written"),
    [(".5", "0.5"), ("0.50", "0.5"), ("1.0", "1"), ("1.", "1"), ("00", "0"), ("1.0to.0-at.50", "1to0-at0.5")],
)
def test_other_spellings_are_written_as_the_usual_one(text: str, written: str) -> None:
    assert str(Commitment.parse(text)) == written
    assert Commitment.parse(written) == Commitment.parse(text)


@pytest.mark.parametrize(
    "text",
    ["", "-0.5", "1.2.3", ".", "1e-3", "nan", "inf", "to", "1to", "to0", "1to0to1", "1to0-", "1to0-sine", "1to0-at",
     "1-cosine", "0.5-at0.5", "1to0-cosine-at0.5", "adaptive-cosine", "each0.5", "Adaptive", "1to0 ", "1 to 0"],
)  # fmt: skip
def test_any_other_form_is_refused_with_all_forms_there_are(text: str) -> None:
    with pytest.raises(ValueError, match="is no commitment") as caught:
        Commitment.parse(text)
    assert str(caught.value) == (
        f"q = {text!r} is no commitment; write 0.75, 1to0, 1to0-cosine, 1to0-at0.5, adaptive or each."
    )


@pytest.mark.parametrize(
    ("text", "named"), [("1.5", "1.5"), ("2to0", "2"), ("0to1.01", "1.01"), ("3to2-cosine", "3"), ("0to7-at0.5", "7")]
)
def test_a_commitment_outside_its_range_is_named(text: str, named: str) -> None:
    with pytest.raises(ValueError, match="outside") as caught:
        Commitment.parse(text)
    assert str(caught.value) == f"q = {named} lies outside [0, 1]; 0 is RL, 1 is marginal likelihood."


@pytest.mark.parametrize("at", ["0", "1", "1.5", "50"])
def test_a_step_lies_between_the_first_and_the_last_step(at: str) -> None:
    with pytest.raises(ValueError, match="moves at") as caught:
        Commitment.parse(f"1to0-at{at}")
    assert str(caught.value) == f"q = 1to0-at{at} moves at {at} of all steps; write a share between 0 and 1."


def test_only_a_constant_is_one_number() -> None:
    assert Commitment.parse("0.75").fixed == 0.75
    assert Commitment.parse("0").fixed == 0
    assert [Commitment.parse(text).fixed for text in ("1to0", "1to0-cosine", "1to0-at0.5", "adaptive", "each")] == (
        [None] * 5
    )


# By the clock


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0.75", {0: 0.75, 0.5: 0.75, 1: 0.75}),
        ("1to0", {0: 1, 0.25: 0.75, 0.5: 0.5, 0.9: 0.1, 1: 0}),
        ("0.2to0.6", {0: 0.2, 0.25: 0.3, 0.5: 0.4, 1: 0.6}),
        # (1 - cos(pi / 4)) / 2 = (1 - 0.70710678) / 2 and (1 - cos(pi / 3)) / 2 = 1/4
        ("1to0-cosine", {0: 1, 0.25: 0.85355339, 1 / 3: 0.75, 0.5: 0.5, 0.75: 0.14644661, 1: 0}),
        ("0.2to0.6-cosine", {0: 0.2, 1 / 3: 0.3, 0.5: 0.4, 2 / 3: 0.5, 1: 0.6}),
        ("1to0-at0.5", {0: 1, 0.49: 1, 0.5: 0, 0.51: 0, 1: 0}),
        ("0.9to0.1-at0.125", {0: 0.9, 0.124: 0.9, 0.125: 0.1, 1: 0.1}),
    ],
)
def test_schedules_by_hand(text: str, wanted: dict[float, float]) -> None:
    commitment = Commitment.parse(text)
    assert {done: commitment.at_step(done) for done in wanted} == pytest.approx(wanted, abs=1e-8)


@pytest.mark.parametrize("course", ["", "-cosine", "-at0.3"])
def test_schedules_end_exactly_where_they_should_and_never_leave_the_range(course: str) -> None:
    for ends in ("0.9to0.1", "0.7to0", "0to1", "0.1to0.3", "1to1"):
        commitment = Commitment.parse(ends + course)
        assert (commitment.at_step(0), commitment.at_step(1)) == (commitment.first, commitment.last)
        low, high = sorted((commitment.first, commitment.last))
        assert all(low <= commitment.at_step(step / 997) <= high for step in range(998))


# By P


@pytest.mark.parametrize("p", [0.0999, 0.05, 1e-2, 1e-4, 1e-9, 1e-300])
def test_adaptive_attenuates_a_cold_example_to_one_value_whatever_its_p(p: float) -> None:
    assert p ** (1 - adaptive(math.log(p))) == pytest.approx(ATTENUATION, rel=1e-9)


@pytest.mark.parametrize(
    ("log10_p", "q"), [(-1, 0), (-2, 1 / 2), (-4, 3 / 4), (-5, 4 / 5), (-10, 9 / 10), (-1000, 0.999), (-0.5, 0), (0, 0)]
)
def test_adaptive_by_hand(log10_p: float, q: float) -> None:
    """With an attenuation of 1/10, q = 1 - 1/k at P = 10^-k."""
    assert ATTENUATION == 0.1
    assert adaptive(log10_p * math.log(10)) == pytest.approx(q, abs=1e-12)


def test_adaptive_goes_from_one_at_zero_to_zero_without_a_jump_or_a_way_back() -> None:
    assert adaptive(-math.inf) == 1
    assert adaptive(math.log(ATTENUATION)) == 0
    assert adaptive(math.log(ATTENUATION) - 1e-9) == pytest.approx(0, abs=1e-9)
    assert adaptive(0.1) == 0  # importance weights can lift an estimate of P above 1
    values = [adaptive(-(1.1**power)) for power in range(-20, 100)]
    assert values == sorted(values)
    assert 0 == values[0] < values[-1] < 1


def test_running_mean_by_hand() -> None:
    mean = running_mean(None, -20.0)
    assert mean == -20
    mean = running_mean(mean, -10.0)  # 0.9 * -20 + 0.1 * -10
    assert mean == pytest.approx(-19)
    assert running_mean(mean, 0.0) == pytest.approx(-17.1)


def test_the_running_mean_comes_to_what_stays() -> None:
    mean = -20.0
    for _ in range(200):
        mean = running_mean(mean, -3.0)
    assert mean == pytest.approx(-3)


def test_q_follows_in_strides() -> None:
    """q(10^-4) = 0.75: it is taken from 0.05 away on, up or down, and nothing nearer is."""
    log_p = -4 * math.log(10)
    assert HYSTERESIS == 0.05
    assert [follow(q, log_p) for q in (0.71, 0.75, 0.79)] == [0.71, 0.75, 0.79]
    assert [follow(q, log_p) for q in (0.0, 0.69, 0.81, 1.0)] == pytest.approx([0.75] * 4)


def test_q_does_not_tremble_with_what_a_step_drew() -> None:
    """P swings between 10^-3.9 and 10^-4.1, q(P) between 0.7436 and 0.7561."""
    q, taken = 1.0, set()
    for step in range(50):
        q = follow(q, (-3.9 if step % 2 else -4.1) * math.log(10))
        taken.add(q)
    assert taken == {adaptive(-4.1 * math.log(10))}
