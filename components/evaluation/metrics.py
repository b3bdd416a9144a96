"""p@k, maj@k and bootstrap intervals, from which of a prompt's samples were right."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over examples with its 95% bootstrap interval, all as fractions of 1."""

    value: float
    low: float
    high: float


def pass_at_k(correct: NDArray[np.bool_], k: int) -> Values:
    """The unbiased estimate of P(at least one of k samples is right), [examples] from [examples, n], n >= k.

    1 - C(n - c, k) / C(n, k) with c right samples of n (Chen et al. 2021, https://arxiv.org/abs/2107.03374, eq. 1).

    Raises:
        ValueError: fewer than k samples.
    """
    n = correct.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"p@{k} needs at least {k} samples of each prompt; there are {n}: raise evaluation.samples.")
    wrong = n - correct.sum(1)
    drawn = np.arange(k)
    # C(wrong, k) / C(n, k) as a product, zero as soon as fewer than k samples are wrong.
    return 1 - np.prod(np.clip(wrong[:, None] - drawn, 0, None) / (n - drawn), axis=1)


def majority(votes: Sequence[str]) -> int:
    """The index of the first sample that gave the most frequent vote; ties go to the vote that occurred first."""
    counts = Counter(votes)
    most = max(counts.values())
    return next(index for index, vote in enumerate(votes) if counts[vote] == most)


def bootstrap(values: Values, *, resamples: int, seed: int) -> Estimate:
    """The mean of `values`, [examples], with its 95% percentile interval over resampled examples."""
    chosen = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    means = values[chosen].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high))


def paired_difference(first: Values, second: Values, *, resamples: int, seed: int) -> Estimate:
    """mean(second - first) over the same examples, with its 95% interval: the examples are resampled in pairs.

    Raises:
        ValueError: the two do not have the same examples.
    """
    if first.shape != second.shape:
        raise ValueError(f"a paired comparison needs the same examples; there are {len(first)} and {len(second)}.")
    return bootstrap(second - first, resamples=resamples, seed=seed)


def finite(value: float) -> float | None:
    """As JSON can have it: None for infinite values and NaN."""
    return float(value) if math.isfinite(value) else None
