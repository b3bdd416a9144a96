"""Which arms of a race go on at a rung and which stop there: a rule over what their validation problems say.

Two figures count. maj@k is what an arm is trained for; mean log P of the gold answers moves long before it does, and
shows an arm that is still behind on its way.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import NormalDist
from typing import Self

import numpy as np

from components.evaluation.metrics import Values

Validated = Mapping[str, Sequence[float | None]]  # `right` and `log_p` of every problem, as a run's state has them


@dataclass(frozen=True)
class Standing:
    """Where an arm stands at a rung: each validation problem, a mean over the arm's seeds, in one order for all arms.

    All seeds are asked the same problems, and what an arm makes of one is much alike in them: so the problems are what
    is counted, not the answers of all seeds.

    right: [problems] the share of seeds in which the majority of its samples was right. log_p: [problems] of the gold
    answer, in nats. gain: [problems] by how much log_p rose since the rung before; None at the first one, to which all
    came from the same base model.
    """

    arm: str
    right: Values
    log_p: Values
    gain: Values | None = None

    @classmethod
    def of(cls, arm: str, now: Sequence[Validated], before: Sequence[Validated] | None) -> Self:
        """From what each seed's validation said at the rung, and at the one before if there is one."""
        log_p = _over_seeds(now, "log_p")
        gain = None if before is None else log_p - _over_seeds(before, "log_p")
        return cls(arm, _over_seeds(now, "right"), log_p, gain)

    @property
    def maj(self) -> float:
        """maj@k over all examples and seeds, a fraction of 1."""
        return float(self.right.mean())

    @property
    def mean_log_p(self) -> float:
        """The mean log P over examples, in nats."""
        return _mean(self.log_p)


def decide(standings: Sequence[Standing], *, keep: float, error: float) -> dict[str, str]:
    """Which arms stop at a rung, each with the reason in words.

    An arm is beaten if another's maj@k and another's mean log P are above its own by more than chance, and it does not
    gain log P faster than that one. The differences are taken problem by problem and told from chance by Student's t;
    each arm is compared with all others, at `error` divided by their number, so that the chance to call an arm beaten
    that no other is ahead of in one of the two figures is at most `error` at a rung. That is said
    of where arms stand at the rung. No test can tell where one would end: a race may stop an arm that would have come
    from behind, and the less so the later its rungs are.

    If more than `keep` of the arms (rounded up) are left then, the lowest ranked stop too, as in successive halving
    (Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943). Ranks are dealt out alternately to the best by
    mean log P and the best by maj@k, so that neither decides alone.
    """
    stop = {}
    for one in standings:
        if (reason := _beaten(one, standings, error)) is not None:
            stop[one.arm] = reason
    places = math.ceil(keep * len(standings))
    left = [one for one in ranked(standings) if one.arm not in stop]
    for one in left[places:]:
        stop[one.arm] = f"only the best {places} of {len(standings)} go on; it has {_figures(one)}"
    return stop


def ranked(standings: Sequence[Standing]) -> list[Standing]:
    """The arms, the best first: alternately the best by mean log P and the best by maj@k of those that are left."""
    by_log_p = sorted(standings, key=lambda one: (-one.mean_log_p, -one.maj))
    by_maj = sorted(standings, key=lambda one: (-one.maj, -one.mean_log_p))
    dealt = chain.from_iterable(zip(by_log_p, by_maj, strict=True))
    return list({one.arm: one for one in dealt}.values())


def _beaten(one: Standing, standings: Sequence[Standing], error: float) -> str | None:
    """Why an arm is beaten; None where it is not."""
    others = [other for other in standings if other is not one]
    if not others:
        return None
    by_maj = max(others, key=lambda other: other.maj)
    by_log_p = max(others, key=lambda other: other.mean_log_p)
    ahead = (by_maj.right - one.right, by_log_p.log_p - one.log_p)
    if not all(_above_zero(differences, error / len(others)) for differences in ahead):
        return None
    if one.gain is not None and by_log_p.gain is not None and _mean(one.gain) > _mean(by_log_p.gain):
        return None  # it is catching up
    better = f"{by_maj.arm} has maj@k {by_maj.maj:.0%}, {by_log_p.arm} mean log P {by_log_p.mean_log_p:.1f}"
    return f"beaten, {better}; it has {_figures(one)}"


def _above_zero(differences: Values, error: float) -> bool:
    """Whether their mean lies above zero by more than chance: Student's t for one side.

    Its quantile is the expansion 26.7.5 of Abramowitz and Stegun, right to 3% from six differences on where the error
    is 1%; below that it is too small.
    """
    known = differences[np.isfinite(differences)]
    if (freedom := len(known) - 1) < 1:
        return False
    z = NormalDist().inv_cdf(1 - error)
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return bool(known.mean() > t * known.std(ddof=1) / math.sqrt(len(known)))


def _mean(values: Values) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else -math.inf


def _figures(one: Standing) -> str:
    gain = "" if one.gain is None else f", {_mean(one.gain):+.1f} since the rung before"
    return f"maj@k {one.maj:.0%}, mean log P {one.mean_log_p:.1f}{gain}"


def _over_seeds(validated: Sequence[Validated], name: str) -> Values:
    rows = [[-math.inf if value is None else value for value in item[name]] for item in validated]
    return np.array(rows, dtype=float).mean(0)
