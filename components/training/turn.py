"""What an arm does at a step where that can change: its estimator, and the commitment q.

Both follow from the step's number and from what earlier steps measured, which every checkpoint has: a run that was
killed goes on with the same ones.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from components.config import Arm
from components.methods import Method
from components.objective.commitment import ATTENUATION, Course, follow, running_mean

# Columns of curves.csv: the mean P, this step's q, the running mean of log P in nats, and 0 for GARL or 1 for PAFT.
P, Q, LOG_P, PHASE = "train/p_estimate", "train/q", "train/log_p", "train/phase"

WINDOW = 10  # steps over which P is averaged before its fall is judged
FALLEN = 0.8  # of its peak, below which the mean P shows that training is unstable
CHANCE = 4.0  # standard errors by which it has to lie below it, for a step's few examples are drawn by chance

Curves = Sequence[Mapping[str, float]]  # a row for each step that is done


@dataclass(frozen=True)
class Turn:
    """One step's estimator.

    q: None where there is none, or each example has its own. reason: why the estimator is another from this step on.
    """

    method: Method
    q: float | None
    reason: str = ""

    @classmethod
    def at(cls, arm: Arm, step: int, steps: int, curves: Curves) -> "Turn":
        """The turn of step number `step`, from 0, of so many; curves: of the steps before it."""
        method, reason = arm.method, ""
        if method is Method.GARL_PAFT:
            method, reason = _phase(curves)
        return cls(method, _commitment(arm, step / steps, curves), reason)

    def figures(self, arm: Arm, log_p: float | None, curves: Curves) -> dict[str, float]:
        """What curves.csv says of this turn, and later turns go by.

        log_p: the mean of log P over the step's examples, in nats; None if none had any. curves: of the steps before.
        """
        found = {}
        if self.q is not None and arm.q is None:
            found[Q] = self.q
        if arm.commitment is not None and arm.commitment.course is Course.ADAPTIVE:
            before = curves[-1].get(LOG_P) if curves else None
            if (mean := before if log_p is None else running_mean(before, log_p)) is not None:
                found[LOG_P] = mean
        if arm.method is Method.GARL_PAFT:
            found[PHASE] = float(self.method is Method.PAFT)
        return found


def _commitment(arm: Arm, done: float, curves: Curves) -> float | None:
    if arm.commitment is None or arm.commitment.course is Course.EACH:
        return None
    if arm.commitment.course is not Course.ADAPTIVE:
        return arm.commitment.at_step(done)
    last = curves[-1] if curves else {}
    return follow(last[Q], last[LOG_P]) if LOG_P in last else 1.0  # nothing is known yet: as cold as can be


def _phase(curves: Curves) -> tuple[Method, str]:
    """GARL until training turns unstable, PAFT from there on: the paper's advice made a rule.

    Unstable: the mean P of the last WINDOW steps is below FALLEN of the highest such mean so far, by more than chance,
    and that was no longer cold. It cannot be told from a fall that would have passed, so there is no way back.
    """
    if curves and curves[-1][PHASE]:
        return Method.PAFT, ""
    if len(curves) < WINDOW:
        return Method.GARL, ""
    windows = np.lib.stride_tricks.sliding_window_view([row[P] for row in curves], WINDOW)
    means, errors = windows.mean(1), windows.std(1, ddof=1) / math.sqrt(WINDOW)
    highest = int(means.argmax())
    peak, now, error = means[highest], means[-1], math.hypot(errors[highest], errors[-1])
    if peak >= ATTENUATION and now < FALLEN * peak and peak - now > CHANCE * error:
        return Method.PAFT, f"the mean P of {WINDOW} steps fell from {peak:.2g} to {now:.2g}"
    return Method.GARL, ""
