"""What the arms are expected to do on a base model, and which of them to take: what look-aheads measured, weighed up.

`components.look_ahead` measures; here is what follows from it. All logs are natural.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from components.config import Arm
from components.errors import UserError
from components.evaluation.metrics import Estimate, Values, finite
from components.methods import Method
from components.objective.commitment import ATTENUATION

ESCAPED = math.log(ATTENUATION)  # log P from which on an example counts as escaped
SEED = 0  # of all resampling here
STALLS = 0.05  # the share of examples out of RL's reach from which on it is said
FULL_STEP = 0.9  # the share of its steps that AdamW's epsilon has to leave an arm, or it is said


@dataclass(frozen=True)
class Gradient:
    """An arm's gradient on the base model, over two batches.

    norm: the mean, before clipping. rms: of its elements. epsilon: what AdamW adds to that to divide by it; None for
    SGD. agreement: the cosine between the two batches' gradients, 1 is all signal and 0 all noise; None where one
    has none.
    effective_samples: how many rollouts of a group share its weight, the mean; None for arms that learn from rewards.
    bias: of the plug-in's amplification P^-q, relative (`estimators.amplification_bias`); None where nothing is
    amplified by one fixed q.
    """

    norm: float
    rms: float
    epsilon: float | None
    agreement: float | None
    effective_samples: float | None
    bias: float | None

    @property
    def step_left(self) -> float:
        """What epsilon leaves of a step along an element of that size, as a share; all of it where there is none."""
        return self.rms / (self.rms + self.epsilon) if self.epsilon and self.rms else 1.0


@dataclass(frozen=True)
class Forecast:
    """What an arm did in a few steps from the base model, and what that lets expect.

    examples_with_gradient: the expected share of examples whose group has a gradient; batches_with_gradient: of steps
    in which one of them has. gain: the change of mean log P over held-out examples after `steps` steps, in nats, with
    its 95% interval over examples. escape_step: when half of the examples will have reached P = 0.1, None for never.
    run_steps: how many a run has.
    before, midway, after: log P of each held-out example after none, half (rounded down) and all of the steps, None for
    log 0.
    """

    arm: str
    steps: int
    examples_with_gradient: float
    batches_with_gradient: float
    gradient: Gradient
    gain: Estimate
    escape_step: float | None
    escape_interval: tuple[float | None, float | None]
    run_steps: int
    before: list[float | None]
    midway: list[float | None]
    after: list[float | None]

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Self:
        """A forecast from its object in forecast.json.

        Raises:
            KeyError, TypeError, ValueError: it is not what `write` wrote.
        """
        low, high = record["escape_interval"]
        parts = {"gradient": Gradient(**record["gradient"]), "gain": Estimate(**record["gain"])}
        return cls(**{**record, **parts, "escape_interval": (low, high)})

    @property
    def gains(self) -> Values:
        """The change of each held-out example's log P in nats, NaN where a rationale made its answer possible only
        before or only after the steps, or never."""
        before, after = (np.array([math.nan if p is None else p for p in side]) for side in (self.before, self.after))
        return after - before

    @property
    def escapes(self) -> Values:
        """Whether each held-out example is on course to P = 0.1 by the end of a run, 1 or 0."""
        sides = (self.before, self.midway, self.after)
        log_p = (np.array([-math.inf if p is None else p for p in side]) for side in sides)
        return (escape_times(*log_p, self.steps) <= self.run_steps).astype(float)

    @property
    def escaped(self) -> float:
        """The share of held-out examples that are."""
        return float(self.escapes.mean())

    @property
    def moves(self) -> bool:
        """Whether the arm will do something else later than what it began with."""
        arm = Arm.parse(self.arm)
        return arm.moves or arm.method is Method.GARL_PAFT


def write(folder: Path, forecasts: Sequence[Forecast]) -> None:
    """Write folder/forecast.json."""
    text = json.dumps([asdict(item) for item in forecasts], indent=1)
    (folder / "forecast.json").write_text(text + "\n", encoding="utf-8")


def read(folder: Path) -> list[Forecast]:
    """What `write` left there; nothing where there was no look-ahead.

    Raises:
        UserError: the file is damaged.
    """
    file = folder / "forecast.json"
    if not file.is_file():
        return []
    try:
        return [Forecast.read(record) for record in json.loads(file.read_text(encoding="utf-8"))]
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{file} is damaged or from another version; run `thaw probe` again.") from None


# Extrapolation


def escape_times(before: Values, midway: Values, after: Values, steps: int) -> Values:
    """The step at which each example reaches P = 0.1 if log P goes on as in the second half of these; inf for never.

    The first half shows how the optimizer starts, not where an arm is heading. A straight line in log P is what
    gradient flow at q = 1 does, and an approximation everywhere else: studies/ has what then happened.

    before, midway, after: log P after 0, steps // 2 and `steps` steps, [examples] each; -inf for a P of 0.
    """
    half = steps // 2
    first = _line(before, midway, 0, half) if half else np.full_like(after, np.inf)
    second = _line(midway, after, half, steps)
    # Who escaped in the first half and was lost in the second one has not escaped.
    return np.where((first <= half) & np.isfinite(second), first, second)


def _line(start: Values, end: Values, begin: int, stop: int) -> Values:
    """When a straight line through log P at two steps reaches P = 0.1, [examples]; `begin` where it was there."""
    with np.errstate(divide="ignore", invalid="ignore"):
        times = begin + (stop - begin) * (ESCAPED - start) / (end - start)
    times[~(end > start) | ~np.isfinite(start)] = np.inf
    # Held from the start, unless it falls below.
    times[(start >= ESCAPED) & (end >= ESCAPED)] = begin
    return times


def half_escaped(times: Values) -> Values:
    """The step at which half of the examples have escaped, [...] from [..., examples]."""
    return np.sort(times, -1)[..., (times.shape[-1] - 1) // 2]


def half_escape(times: Values, *, resamples: int) -> tuple[float | None, tuple[float | None, float | None]]:
    """`half_escaped` and its 95% bootstrap interval over examples; None for never. times: [examples]."""
    drawn = np.random.default_rng(SEED).integers(len(times), size=(resamples, len(times)))
    low, high = np.quantile(half_escaped(times[drawn]), [0.025, 0.975], method="nearest")
    return finite(half_escaped(times).item()), (finite(low), finite(high))


# Advice


def out_of_reach(log_p: Sequence[float | None], rollouts: int) -> float:
    """The share of examples of whose like no right answer is expected in so many rollouts: P below 1 / rollouts.

    log_p: of examples under the base model, None for log 0.
    """
    return sum(value is None or value < -math.log(rollouts) for value in log_p) / len(log_p)


def advice_on_rl(log_p: Sequence[float | None], rollouts: int, groups_with_signal: float) -> str:
    """Whether RL on sampled answers would stall, in a sentence; rollouts: of a whole run.

    groups_with_signal: the share of groups in which rewards would differ.
    """
    share = out_of_reach(log_p, rollouts)
    if share < STALLS:
        return f"RL has a signal here: rewards would differ in {groups_with_signal:.1%} of the groups."
    where, whose = ("", "P of every example") if share == 1 else (f" on {share:.0%} of the examples", "their P")
    return (
        f"RL stalls here{where}: {whose} is so small that not one right answer is expected in all {rollouts:,} rollouts"
        f" of a run. Rewards would differ in {groups_with_signal:.1%} of the groups."
    )


def recommended(forecasts: Sequence[Forecast]) -> tuple[Forecast, float]:
    """The arm that brings most held-out examples to P = 0.1 by the end of a run, and how sure it is of its place.

    Of equal arms it is the one that raised mean log P most. Arms that will do something else later (a q that moves) are
    left out beside those that will not, for the look-ahead shows only how they begin. How sure: the share of resampled
    sets of examples (1,000) in which the arm comes first; examples whose change is unknown for some arm are left out of
    that.
    """
    candidates = [item for item in forecasts if not item.moves] or list(forecasts)
    candidates = sorted(candidates, key=lambda item: (item.escaped, item.gain.value), reverse=True)
    best = candidates[0]
    gains, escapes = (np.stack([getattr(item, name) for item in candidates]) for name in ("gains", "escapes"))
    known = np.isfinite(gains).all(0)
    if not known.any():
        return best, 1 / len(candidates)
    gains, escapes = gains[:, known], escapes[:, known]
    drawn = np.random.default_rng(SEED).integers(gains.shape[1], size=(1000, gains.shape[1]))
    means = (gains[:, drawn].mean(-1), escapes[:, drawn].mean(-1))  # [arms, resamples] each
    first = np.lexsort(means, axis=0)[-1]  # by the share of escapes; among equals by the gain; a draw is no win
    return best, float((first == 0).mean())


def advice(forecasts: Sequence[Forecast]) -> str:
    """Which arm to train, why, and how sure that is, in some sentences; and whose steps AdamW's epsilon shortens."""
    return " ".join(filter(None, (_choice(forecasts), _shortened(forecasts))))


def _choice(forecasts: Sequence[Forecast]) -> str:
    best, sure = recommended(forecasts)
    gain = f"{best.gain.value:+.1f} nats [{best.gain.low:+.1f}, {best.gain.high:+.1f}]"
    did = f"in {best.steps} steps it changed mean log P of held-out examples by {gain}"
    if best.gain.low <= 0:
        return (
            f"No arm got anywhere that can be told from chance; of the best, {best.arm}: {did}. Look further ahead"
            " (probe.look_ahead), sample larger groups (rollout.group_size), or try a higher q."
        )
    # At step 0 they have it from the start.
    when = f"; half of them reach P = 0.1 at about step {best.escape_step:.0f}" if best.escape_step else ""
    text = (
        f"Train {best.arm}: {did}, and {best.escaped:.0%} of them are on course to P = 0.1 within {best.run_steps}"
        f" steps, first of its peers in {sure:.0%} of resampled sets of examples{when}."
    )
    if left_out := [item.arm for item in forecasts if item.moves and not best.moves]:
        text += f" Not compared, for what they do changes later: {', '.join(left_out)}."
    return text


def _shortened(forecasts: Sequence[Forecast]) -> str:
    """Whose gradients are not large against AdamW's epsilon, in a sentence; empty where all are."""
    short = [item for item in forecasts if item.gradient.step_left < FULL_STEP]
    if not short:
        return ""
    arms = ", ".join(f"{item.arm} {item.gradient.step_left:.0%}" for item in short)
    return (
        f"AdamW's epsilon (train.adam_epsilon = {short[0].gradient.epsilon:g}) is not small against the gradients of"
        f" some arms, and shortens their first steps to this share of the learning rate: {arms}."
    )
