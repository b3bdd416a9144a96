"""Two models on the same examples: paired by id, and refused where there is nothing to pair."""

from dataclasses import dataclass

import numpy as np
import pytest

from components.config import EvaluationSettings
from components.errors import UserError
from components.evaluation.compare import compare

SETTINGS = EvaluationSettings(samples=16, bootstrap=500, seed=0)


@dataclass(frozen=True)
class Record:
    id: str
    correct: list[bool]
    vote_correct: bool


def records(correct: np.ndarray) -> list[Record]:
    return [Record(f"p{number}", row.tolist(), bool(row.mean() > 0.5)) for number, row in enumerate(correct)]


@pytest.fixture
def pair() -> tuple[list[Record], list[Record]]:
    random = np.random.default_rng(0)
    easy = random.random((200, 1))
    return records(random.random((200, 4)) < easy), records(random.random((200, 4)) < np.minimum(1, easy + 0.05))


def test_figures_and_their_difference(pair) -> None:
    first, second = pair
    found = compare(first, second, SETTINGS)
    assert (found.k, found.examples) == (4, 200)
    assert found.p_at_1.first.value == pytest.approx(np.mean([item.correct for item in first]))
    assert found.p_at_k.second.value == pytest.approx(np.mean([any(item.correct) for item in second]))
    assert found.maj_at_k.first.value == pytest.approx(np.mean([item.vote_correct for item in first]))
    for figure in (found.p_at_1, found.p_at_k, found.maj_at_k):
        assert figure.difference.value == pytest.approx(figure.second.value - figure.first.value)
        assert figure.difference.low <= figure.difference.value <= figure.difference.high


def test_pairing_is_sharper_than_two_intervals(pair) -> None:
    found = compare(*pair, SETTINGS).p_at_1
    paired = found.difference.high - found.difference.low
    apart = np.hypot(found.first.high - found.first.low, found.second.high - found.second.low)
    assert paired < 0.6 * apart


def test_order_does_not_matter(pair) -> None:
    first, second = pair
    assert compare(first, second[::-1], SETTINGS) == compare(first, second, SETTINGS)


def test_a_model_does_not_differ_from_itself(pair) -> None:
    first, _ = pair
    difference = compare(first, first, SETTINGS).maj_at_k.difference
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)


def test_other_examples_are_refused(pair) -> None:
    first, second = pair
    with pytest.raises(UserError, match=r"\(200 and 199, of which 1 have no partner, such as 'p0'\)"):
        compare(first, second[1:], SETTINGS)


def test_other_numbers_of_samples_are_refused(pair) -> None:
    first, second = pair
    shorter = [Record(item.id, item.correct[:2], item.vote_correct) for item in second]
    with pytest.raises(UserError, match="from 2 to 4 samples"):
        compare(first, shorter, SETTINGS)


def test_nothing_to_compare() -> None:
    with pytest.raises(UserError, match="no examples"):
        compare([], [], SETTINGS)
