"""Is one model better than another? Both answered the same examples, so their difference is taken in pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from components.config import EvaluationSettings
from components.errors import UserError
from components.evaluation.metrics import Estimate, Values, bootstrap, paired_difference, pass_at_k


class Sampled(Protocol):
    """What was right of one example's samples, as `evaluate.Scored` and a line of samples.jsonl say it."""

    @property
    def id(self) -> str:
        """The example's id, by which two models' samples are paired."""
        ...

    @property
    def correct(self) -> Sequence[bool]:
        """Whether each sample is right, in the order of sampling."""
        ...

    @property
    def vote_correct(self) -> bool:
        """Whether the answer that most samples gave is right."""
        ...


@dataclass(frozen=True)
class Pair:
    """One figure of both models; difference is the second's minus the first's, paired by example."""

    first: Estimate
    second: Estimate
    difference: Estimate


@dataclass(frozen=True)
class Comparison:
    """k is the number of samples of each prompt; figures as in `evaluate.Evaluation`."""

    k: int
    examples: int
    p_at_1: Pair
    p_at_k: Pair
    maj_at_k: Pair


def compare(first: Sequence[Sampled], second: Sequence[Sampled], settings: EvaluationSettings) -> Comparison:
    """Compare two models' samples of the same examples, in any order.

    settings: its bootstrap and seed make the intervals; k is what was sampled, whatever settings.samples says today.

    Raises:
        UserError: the examples are not the same, or one model gave more samples than the other.
    """
    by_id = {item.id: item for item in second}
    _check_examples([item.id for item in first], list(by_id))
    k = _samples([*first, *second])
    ours, theirs = _by_example(first, k), _by_example([by_id[item.id] for item in first], k)
    resampling = {"resamples": settings.bootstrap, "seed": settings.seed}
    pairs = {
        name: Pair(
            first=bootstrap(ours[name], **resampling),
            second=bootstrap(theirs[name], **resampling),
            difference=paired_difference(ours[name], theirs[name], **resampling),
        )
        for name in ours
    }
    return Comparison(k=k, examples=len(first), **pairs)


def _by_example(samples: Sequence[Sampled], k: int) -> dict[str, Values]:
    correct = np.array([item.correct for item in samples], dtype=np.bool_)
    return {
        "p_at_1": correct.mean(1),
        "p_at_k": pass_at_k(correct, k),
        "maj_at_k": np.array([item.vote_correct for item in samples], dtype=np.float64),
    }


def _check_examples(first: Sequence[str], second: Sequence[str]) -> None:
    if not first or not second:
        raise UserError("there is nothing to compare: an evaluation holds no examples; evaluate both models first.")
    if alone := set(first) ^ set(second):
        raise UserError(
            f"the two models answered different examples ({len(first)} and {len(second)}, of which {len(alone)} have no"
            f" partner, such as '{min(alone)}'); evaluate both on the same split of the same data."
        )


def _samples(samples: Sequence[Sampled]) -> int:
    counts = {len(item.correct) for item in samples}
    if len(counts) > 1:
        raise UserError(
            f"the examples have from {min(counts)} to {max(counts)} samples each; evaluate both models with one"
            " setting of evaluation.samples."
        )
    return counts.pop()
