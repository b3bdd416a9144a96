"""p@k, maj@k and the bootstrap against what can be counted by hand."""

from itertools import combinations

import numpy as np
import pytest

from components.evaluation.metrics import bootstrap, majority, paired_difference, pass_at_k


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_counts_subsets(n: int) -> None:
    correct = np.tril(np.ones((n + 1, n), dtype=np.bool_), -1)  # 0 to n right samples of n
    for k in range(1, n + 1):
        counted = [np.mean([any(chosen) for chosen in combinations(row, k)]) for row in correct]
        assert pass_at_k(correct, k) == pytest.approx(counted)


def test_pass_at_k_of_many_samples_stays_a_probability() -> None:
    correct = np.zeros((3, 4096), dtype=np.bool_)
    correct[1, 0] = correct[2, :] = True
    assert pass_at_k(correct, 1024) == pytest.approx([0, 0.25, 1])


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_needs_k_samples(k: int) -> None:
    with pytest.raises(ValueError, match=r"4: raise evaluation\.samples"):
        pass_at_k(np.ones((2, 4), dtype=np.bool_), k)


@pytest.mark.parametrize(
    ("votes", "elected"),
    [("a", 0), ("abb", 1), ("abba", 0), ("baab", 0), ("abcbc", 1), ("abc", 0), (["", "x", ""], 0)],
)
def test_majority_and_its_ties(votes: list[str], elected: int) -> None:
    assert majority(votes) == elected


def test_bootstrap_repeats_itself() -> None:
    values = np.random.default_rng(0).random(50)
    first = bootstrap(values, resamples=300, seed=1)
    assert first == bootstrap(values, resamples=300, seed=1)
    assert first != bootstrap(values, resamples=300, seed=2)
    assert first.value == values.mean()
    assert first.low < first.value < first.high


def test_bootstrap_of_equal_values_has_no_width() -> None:
    found = bootstrap(np.ones(20), resamples=100, seed=0)
    assert (found.value, found.low, found.high) == (1, 1, 1)


def test_bootstrap_is_as_wide_as_theory_says() -> None:
    values = (np.arange(400) % 4 == 0).astype(np.float64)
    found = bootstrap(values, resamples=4000, seed=0)
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(0.25 * 0.75 / 400), rel=0.08)


def test_bootstrap_covers_the_truth_about_95_times_in_100() -> None:
    random = np.random.default_rng(0)
    found = [bootstrap((random.random(100) < 0.3).astype(np.float64), resamples=400, seed=seed) for seed in range(400)]
    covered = np.mean([estimate.low <= 0.3 <= estimate.high for estimate in found])
    assert 0.91 <= covered <= 0.98  # 0.95 +- 3 standard errors, and percentile intervals run a little narrow


def test_paired_difference_sees_what_the_examples_share() -> None:
    random = np.random.default_rng(0)
    first = random.random(300)
    second = first + random.normal(0.02, 0.05, 300)
    found = paired_difference(first, second, resamples=500, seed=0)
    assert found.value == pytest.approx((second - first).mean())
    assert 0 < found.low < 0.02 < found.high
    assert found.high - found.low < 0.3 * (
        bootstrap(first, resamples=500, seed=0).high - bootstrap(first, resamples=500, seed=0).low
    )


def test_paired_difference_covers_the_truth() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for seed in range(300):
        easy = random.random(80)
        found = paired_difference(easy, easy + random.normal(0.1, 0.2, 80), resamples=300, seed=seed)
        covered += found.low <= 0.1 <= found.high
    assert 0.90 <= covered / 300 <= 0.985


def test_paired_difference_needs_the_same_examples() -> None:
    with pytest.raises(ValueError, match="there are 3 and 2"):
        paired_difference(np.zeros(3), np.zeros(2), resamples=10, seed=0)
