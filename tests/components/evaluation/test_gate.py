"""The gate: a gain that is large enough, no accident, and paid for nowhere."""

import pytest

from components.evaluation.compare import Comparison, Pair
from components.evaluation.gate import gate
from components.evaluation.metrics import Estimate


def comparison(value: float, low: float, high: float) -> Comparison:
    """Two models whose maj@16 differ by this, in points."""
    difference = Estimate(value / 100, low / 100, high / 100)
    pair = Pair(Estimate(0.5, 0.45, 0.55), Estimate(0.5 + value / 100, 0.0, 1.0), difference)
    unused = Pair(pair.second, pair.first, Estimate(-1.0, -1.0, -1.0))
    return Comparison(k=16, examples=200, p_at_1=unused, p_at_k=unused, maj_at_k=pair)


@pytest.mark.parametrize(
    ("gain", "other", "fault"),
    [
        ((2.0, 0.5, 3.5), (0.0, -1.0, 1.0), None),
        ((2.0, 0.5, 3.5), (-1.0, -3.0, 0.0), None),
        ((1.0, 0.5, 1.5), (4.0, 3.0, 5.0), None),
        ((0.9, 0.5, 1.5), (4.0, 3.0, 5.0), "the gain is below 1.0 points"),
        ((5.0, 0.0, 9.0), (4.0, 3.0, 5.0), "its interval is not above zero"),
        ((5.0, 1.0, 9.0), (-2.0, -3.0, -0.1), "it is worse on november"),
        ((-5.0, -9.0, -1.0), (0.0, 0.0, 0.0), "the gain is below 1.0 points and its interval is not above zero"),
    ],
)
def test_a_gain_must_be_large_certain_and_paid_for_nowhere(
    gain: tuple[float, float, float], other: tuple[float, float, float], fault: str | None
):
    decision = gate({"november": comparison(*other), "test": comparison(*gain)}, "test", 0.01)
    assert decision.passed == (fault is None)
    assert decision.reason.endswith(fault or "over 200 problems")


def test_the_reason_holds_the_figures_that_decided():
    decision = gate({"november": comparison(0, -1, 1), "test": comparison(2, 0.5, 3.5)}, "test", 0.01)
    assert decision.reason == (
        "maj@16 on test 52.0 against 50.0 percent, +2.0 [+0.5, +3.5] points over 200 problems;"
        " maj@16 on november 50.0 against 50.0 percent, +0.0 [-1.0, +1.0] points over 200 problems"
    )
