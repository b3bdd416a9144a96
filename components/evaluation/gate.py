"""The gate before promotion: a new model must be better by a margin that is no accident, and worse on nothing."""

from collections.abc import Mapping
from dataclasses import dataclass

from components.evaluation.compare import Comparison
from components.evaluation.metrics import Estimate


@dataclass(frozen=True)
class Decision:
    """Whether the candidate goes through, and the figures that decided it, as one sentence."""

    passed: bool
    reason: str


def gate(comparisons: Mapping[str, Comparison], on: str, margin: float) -> Decision:
    """Decide by maj@k whether the second model of each comparison may take the place of the first.

    It may when its gain on the test set `on` is at least `margin` (a fraction of 1), the 95% interval of that gain lies
    above zero, and on no other test set the interval lies below zero.

    comparisons: by test set; `on` is one of them.
    """
    main = comparisons[on].maj_at_k.difference
    faults = []
    if main.value < margin:
        faults.append(f"the gain is below {100 * margin:.1f} points")
    if main.low <= 0:
        faults.append("its interval is not above zero")
    worse = [name for name, found in comparisons.items() if name != on and found.maj_at_k.difference.high < 0]
    faults += [f"it is worse on {name}" for name in worse]
    told = "; ".join(_told(name, comparisons[name]) for name in [on, *sorted(set(comparisons) - {on})])
    return Decision(not faults, f"{told}; {' and '.join(faults)}" if faults else told)


def _told(test_set: str, comparison: Comparison) -> str:
    pair = comparison.maj_at_k
    return (
        f"maj@{comparison.k} on {test_set} {100 * pair.second.value:.1f} against {100 * pair.first.value:.1f} percent,"
        f" {_points(pair.difference)} over {comparison.examples} problems"
    )


def _points(gain: Estimate) -> str:
    return f"{100 * gain.value:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}] points"
