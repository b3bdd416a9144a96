"""How the commitment q goes while a model trains: fixed, by the clock, or by how often the model is right by now.

Cold, a high q is what gets a model moving; warm, a low one fits the noise of labels less and is nearer to the accuracy
that is wanted (Lin & Ie, 2026, https://arxiv.org/abs/2604.25907, whose v2 reads supervised fine-tuning and then RL as a
step of q from 1 to 0). An adaptive commitment, which is not in the paper, takes at success probability P the least q
whose attenuation P^(1-q) of the maximum-likelihood gradient is ATTENUATION or more:

    q(P) = 1 - log(ATTENUATION) / log(P) for P < ATTENUATION, and 0 above.

Where q follows each example's own P, the RL gradient is amplified by P^(-q(P)): ATTENUATION / P below ATTENUATION, and
1 above. That descends a loss with a continuous gradient: marginal likelihood while an example is cold (ATTENUATION
times -log P), RL (1 - P) once it is warm.

It imports nothing heavy, for the settings and the command line read commitments.
"""

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

ATTENUATION = 0.1  # also the P from which on an example or a model counts as out of the cold start
NEWEST = 0.1  # the weight of the newest step in the running mean of log P
HYSTERESIS = 0.05  # an adaptive q stays as it is while it would change by less

NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
PATTERN = re.compile(
    rf"(?P<fixed>{NUMBER})|(?P<word>adaptive|each)"
    rf"|(?P<first>{NUMBER})to(?P<last>{NUMBER})(?:-(?P<cosine>cosine)|-at(?P<at>{NUMBER}))?"
)


class Course(StrEnum):
    """What q depends on."""

    CONSTANT = "constant"
    LINEAR = "linear"  # the share of steps done, from the first value to the last
    COSINE = "cosine"  # the same by half a wave of a cosine: slow, fast, slow
    STEP = "step"  # the first value until a share of the steps is done, then the last
    ADAPTIVE = "adaptive"  # the running mean of log P over examples
    EACH = "each"  # each example's own P, estimated by the other rollouts of its group


@dataclass(frozen=True)
class Commitment:
    """A commitment as arm names write it: 0.75, 1to0, 1to0-cosine, 1to0-at0.5, adaptive or each.

    first, last: the values of q that it goes from and to; equal where it is constant. at: the share of all steps, in
    (0, 1), behind which the last one follows; of Course.STEP alone.
    """

    course: Course
    first: float = 0.0
    last: float = 0.0
    at: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Commitment":
        """Read one of those forms; str() writes it.

        Raises:
            ValueError: it has none of those forms, a q outside [0, 1], or a share of the steps outside (0, 1).
        """
        if (match := PATTERN.fullmatch(text)) is None:
            raise ValueError(
                f"q = {text!r} is no commitment; write 0.75, 1to0, 1to0-cosine, 1to0-at0.5, adaptive or each."
            )
        if match["word"]:
            return cls(Course(match["word"]))
        first = float(match["fixed"] or match["first"])
        last = float(match["last"] or first)
        if outside := [q for q in (first, last) if q > 1]:
            raise ValueError(f"q = {outside[0]:g} lies outside [0, 1]; 0 is RL, 1 is marginal likelihood.")
        if match["at"] is not None:
            if not 0 < float(match["at"]) < 1:
                raise ValueError(f"q = {text} moves at {match['at']} of all steps; write a share between 0 and 1.")
            return cls(Course.STEP, first, last, float(match["at"]))
        course = Course.CONSTANT if match["fixed"] else Course.COSINE if match["cosine"] else Course.LINEAR
        return cls(course, first, last)

    def __str__(self) -> str:
        ends = f"{_text(self.first)}to{_text(self.last)}"
        return {
            Course.CONSTANT: _text(self.first),
            Course.LINEAR: ends,
            Course.COSINE: f"{ends}-cosine",
            Course.STEP: f"{ends}-at{_text(self.at)}",
        }.get(self.course, self.course.value)

    @property
    def fixed(self) -> float | None:
        """q where it never moves."""
        return self.first if self.course is Course.CONSTANT else None

    def at_step(self, done: float) -> float:
        """q of a constant or of a schedule by the clock, when a share `done` of all steps, in [0, 1], is done."""
        moved = {
            Course.LINEAR: done,
            Course.COSINE: (1 - math.cos(math.pi * done)) / 2,
            Course.STEP: float(done >= self.at),
        }.get(self.course, 0.0)
        return (1 - moved) * self.first + moved * self.last  # exact at both ends


def adaptive(log_p: float) -> float:
    """q(P) of this module's head, in [0, 1]: 1 at P = 0, 0 from ATTENUATION on; log_p: log P in nats."""
    return 1 - math.log(ATTENUATION) / min(log_p, math.log(ATTENUATION))


def running_mean(before: float | None, log_p: float) -> float:
    """The running mean of log P over steps, in nats, after a step of mean log_p; before: None at the first step."""
    return log_p if before is None else (1 - NEWEST) * before + NEWEST * log_p


def follow(q: float, log_p: float) -> float:
    """The commitment that goes with a running mean of log P, in nats, where the step before had q.

    It moves in strides of HYSTERESIS or more, so that it does not tremble with the examples that a step drew.
    """
    wanted = adaptive(log_p)
    return wanted if abs(wanted - q) >= HYSTERESIS else q


def _text(value: float) -> str:
    """A number as short as it can be read back, without the exponent that no arm's name has."""
    return format(Decimal(repr(value)).normalize(), "f")
