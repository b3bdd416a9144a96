"""Estimators on rewards: values by hand, groups that teach nothing, and what is refused."""

import math

import pytest
import torch

from components.objective.rewards import dr_grpo, grpo, maxrl, rloo, star
from tests.components.objective.conftest import INF, Estimator, float64, seeded

ALL = {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo, "maxrl": maxrl, "star": star}
by_estimator = pytest.mark.parametrize("estimator", ALL.values(), ids=ALL.keys())
by_baselined = pytest.mark.parametrize("estimator", [grpo, dr_grpo, rloo, maxrl])


# Values by hand


def test_grpo_by_hand() -> None:
    # mean 0.25; squared deviations 0.5625 + 3 * 0.0625 = 0.75, over M - 1 = 3, so std 0.5
    coefficients = grpo(torch.tensor([[1, 0, 0, 0]]))
    expected = float64((0.75 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001))
    torch.testing.assert_close(coefficients.score, expected)


@pytest.mark.parametrize(
    ("estimator", "one_right", "three_right"),
    [
        (dr_grpo, (0.75, -0.25, -0.25, -0.25), (0.25, 0.25, 0.25, -0.75)),
        (rloo, (1, -1 / 3, -1 / 3, -1 / 3), (1 / 3, 1 / 3, 1 / 3, -1)),
        (maxrl, (3, -1, -1, -1), (1 / 3, 1 / 3, 1 / 3, -1)),
        (star, (4, 0, 0, 0), (4 / 3, 4 / 3, 4 / 3, 0)),
    ],
)
def test_advantages_by_hand(estimator: Estimator, one_right: tuple[float, ...], three_right: tuple[float, ...]) -> None:
    coefficients = estimator(torch.tensor([[1, 0, 0, 0], [1, 1, 1, 0]]))
    torch.testing.assert_close(coefficients.score, float64(one_right, three_right))


@pytest.mark.parametrize(("estimator", "wanted"), [(dr_grpo, (-0.4, 0.1, 0.3)), (rloo, (-0.6, 0.15, 0.45))])
def test_rewards_between_right_and_wrong_by_hand(estimator: Estimator, wanted: tuple[float, ...]) -> None:
    """Of 0.1, 0.6 and 0.8 the mean is 0.5, and the means of the others 0.7, 0.45 and 0.35."""
    torch.testing.assert_close(estimator(float64((0.1, 0.6, 0.8))).score, float64(wanted))


@by_estimator
def test_rationale_and_answer_have_the_same_coefficient(estimator: Estimator) -> None:
    coefficients = estimator(torch.tensor([[1, 0, 1]]))
    assert torch.equal(coefficients.score, coefficients.path)


@by_baselined
def test_advantages_of_a_group_sum_to_zero(estimator: Estimator) -> None:
    reward = torch.randint(2, (20, 7), generator=seeded(0))
    torch.testing.assert_close(
        estimator(reward).score.sum(-1), torch.zeros(20, dtype=torch.float64), rtol=0, atol=1e-13
    )


# Groups that teach nothing


@pytest.mark.parametrize("estimator", [grpo, dr_grpo, rloo])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1])
def test_equal_rewards_are_exactly_zero(estimator: Estimator, reward: float) -> None:
    coefficients = estimator(torch.full((2, 7), reward, dtype=torch.float64))  # seven times 0.1 averages to no 0.1
    assert not coefficients.score.any()
    assert not coefficients.carries_gradient.any()


def test_maxrl_and_star_are_zero_without_a_right_answer_and_only_star_learns_from_none_but_right_ones() -> None:
    reward = torch.tensor([[0, 0, 0], [1, 1, 1], [0, 1, 0]])
    assert maxrl(reward).carries_gradient.tolist() == [False, False, True]
    assert star(reward).carries_gradient.tolist() == [False, True, True]
    assert star(reward).score[:2].tolist() == [[0, 0, 0], [1, 1, 1]]


def test_star_takes_a_single_rollout() -> None:
    assert star(torch.tensor([[1], [0]])).score.tolist() == [[1], [0]]


# What comes in


@by_estimator
def test_booleans_are_rewards_and_results_detached_float64(estimator: Estimator) -> None:
    reward = torch.tensor([[1.0, 0.0]], dtype=torch.float32, requires_grad=True)
    coefficients = estimator(reward)
    for values in (coefficients.score, coefficients.path):
        assert values.dtype == torch.float64
        assert not values.requires_grad
    assert torch.equal(estimator(torch.tensor([[True, False]])).score, coefficients.score)
    assert coefficients.score[0, 0] > 0


@by_estimator
@pytest.mark.parametrize("value", [math.nan, INF, -INF])
def test_broken_rewards_are_refused_by_name(estimator: Estimator, value: float) -> None:
    with pytest.raises(ValueError, match="reward holds NaN"):
        estimator(float64((0.0, value)))


@by_estimator
@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (2, 0)])
def test_anything_but_groups_of_rewards_is_refused(estimator: Estimator, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="reward has shape"):
        estimator(torch.zeros(shape))


@pytest.mark.parametrize(
    ("estimator", "name"), [(grpo, "GRPO"), (dr_grpo, "Dr. GRPO"), (rloo, "RLOO"), (maxrl, "MaxRL")]
)
def test_single_rollout_is_refused_where_rollouts_are_compared(estimator: Estimator, name: str) -> None:
    with pytest.raises(ValueError, match=f"M = 1: {name}'s .*raise the group size"):
        estimator(torch.zeros(3, 1))


@pytest.mark.parametrize(("estimator", "name"), [(maxrl, "MaxRL"), (star, "STaR")])
@pytest.mark.parametrize("value", [0.5, -1.0, 2.0])
def test_rewards_that_are_neither_right_nor_wrong_are_refused(estimator: Estimator, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"neither 0 nor 1; {name} is defined for right and wrong answers"):
        estimator(float64((1.0, value)))
