"""The race's rule: by hand, and how often it is wrong where nobody is behind."""

import numpy as np
import pytest
from scipy.stats import t

from components.race import Standing, _above_zero, decide, ranked


def standing(arm: str, maj: float, log_p: float, gain: float | None = None, problems: int = 100) -> Standing:
    """An arm with these means, its problems apart from one another."""
    spread = np.linspace(-1, 1, problems)
    right = (np.arange(problems) < maj * problems).astype(float)
    return Standing(arm, right, log_p + spread, None if gain is None else gain + 0.5 * spread)


def test_an_arm_behind_in_both_figures_is_beaten_and_told_why() -> None:
    arms = [standing("q1", 0.8, -1.0), standing("q0", 0.2, -9.0), standing("q0.5", 0.75, -1.4)]
    assert decide(arms, keep=1, error=0.05).keys() == {"q0", "q0.5"}
    assert decide(arms, keep=1, error=0.05)["q0"] == (
        "beaten, q1 has maj@k 80%, q1 mean log P -1.0; it has maj@k 20%, mean log P -9.0"
    )


@pytest.mark.parametrize(("maj", "log_p"), [(0.2, -1.0), (0.8, -9.0), (0.8, -1.0)])
def test_an_arm_level_in_one_figure_is_not_beaten(maj: float, log_p: float) -> None:
    """As q = 1 at step 50 of the mixed start: behind q = 0.75 in maj@k, and ahead in log P."""
    assert decide([standing("a", 0.8, -1.0), standing("b", maj, log_p)], keep=1, error=0.05) == {}


def test_an_arm_that_catches_up_is_not_beaten() -> None:
    ahead, behind = standing("a", 0.8, -1.0, gain=0.1), standing("b", 0.2, -4.0, gain=3.0)
    assert decide([ahead, behind], keep=1, error=0.05) == {}
    assert decide([ahead, standing("b", 0.2, -4.0, gain=0.0)], keep=1, error=0.05).keys() == {"b"}


def test_the_budget_stops_the_lowest_ranked_of_those_that_are_left() -> None:
    arms = [standing(name, 0.5, -2 - 0.001 * place) for place, name in enumerate("abcde")]
    stopped = decide(arms, keep=0.5, error=0.05)
    assert stopped.keys() == {"d", "e"}
    assert stopped["d"] == "only the best 3 of 5 go on; it has maj@k 50%, mean log P -2.0"
    # Who is beaten takes no place from the others.
    assert decide([*arms[:3], standing("x", 0, -30)], keep=0.5, error=0.05).keys() == {"c", "x"}


def test_ranks_go_to_either_figure_in_turn() -> None:
    arms = [
        standing("slow", 0.1, -1.0),
        standing("fast", 0.9, -5.0),
        standing("a", 0.2, -2.0),
        standing("b", 0.3, -6.0),
    ]
    assert [one.arm for one in ranked(arms)] == ["slow", "fast", "a", "b"]
    assert decide(arms, keep=0.5, error=0.05).keys() == {"a", "b"}


def test_one_arm_goes_on_and_so_do_arms_without_a_difference_in_the_order_given() -> None:
    assert decide([standing("a", 0.0, -9.0)], keep=0.5, error=0.05) == {}
    same = [standing(name, 0.5, -2.0) for name in "abcd"]
    assert decide(same, keep=1, error=0.05) == {}
    assert decide(same, keep=0.5, error=0.05).keys() == {"c", "d"}


def test_answers_without_any_chance_are_left_out_of_means_and_differences() -> None:
    one, other = standing("a", 0.5, -2.0), standing("b", 0.5, -2.0)
    log_p = other.log_p.copy()
    log_p[3] = -np.inf
    assert Standing("b", other.right, log_p).mean_log_p == pytest.approx(-2.0, abs=0.02)
    assert decide([one, Standing("b", other.right, log_p)], keep=1, error=0.05) == {}


@pytest.mark.parametrize("arms", [2, 8])
def test_arms_that_are_level_are_called_beaten_less_often_than_stated(arms: int) -> None:
    """Any of them, in a thousand races of arms that differ by chance alone: the bound is for one arm and one figure."""
    random, wrong = np.random.default_rng(0), 0
    for _ in range(1000):
        hardness = random.normal(size=100)
        level = [
            Standing(
                str(arm),
                (random.normal(size=100) > hardness).astype(float),
                -np.exp(hardness + random.normal(size=100)),
                random.normal(size=100),
            )
            for arm in range(arms)
        ]
        wrong += bool(decide(level, keep=1, error=0.05))
    assert wrong / 1000 <= 0.05


@pytest.mark.parametrize("problems", [6, 8, 20, 100])
@pytest.mark.parametrize("error", [0.05, 0.01])
def test_what_is_above_zero_by_more_than_chance_is_told_by_students_t(problems: int, error: float) -> None:
    differences = np.random.default_rng(0).normal(size=problems)
    at = t.ppf(1 - error, problems - 1) * differences.std(ddof=1) / problems**0.5 - differences.mean()
    spread = differences.std(ddof=1) / problems**0.5
    assert not _above_zero(differences + at - 0.1 * spread, error)
    assert _above_zero(differences + at + 0.1 * spread, error)


@pytest.mark.parametrize("seeds", [1, 5])
@pytest.mark.parametrize("own", [0.0, 2.0])
def test_an_arm_that_is_level_is_called_beaten_no_more_often_than_stated(own: float, seeds: int) -> None:
    """Two arms level in log P, one of which is far behind in maj@k: the bound is for one figure alone.

    own: how much an arm makes of a problem in all of its seeds, against the noise of one seed.
    """
    random, wrong, trials, problems = np.random.default_rng(0), 0, 200, 60
    for _ in range(trials):
        arms = []
        for right, arm in ((1.0, "a"), (0.0, "b")):
            effect = own * random.normal(size=problems)
            runs = [(effect + random.normal(size=problems) - 9).tolist() for _ in range(seeds)]
            arms.append(Standing.of(arm, [{"right": [right] * problems, "log_p": log_p} for log_p in runs], None))
        wrong += bool(decide(arms, keep=1, error=0.05))
    assert wrong / trials <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5  # three standard errors of the count


def test_a_standing_is_the_mean_of_its_seeds() -> None:
    before = [{"right": [1.0, 0.0], "log_p": [-1.0, None]}, {"right": [0.0, 0.0], "log_p": [-3.0, -5.0]}]
    now = [{"right": [1.0, 1.0], "log_p": [-0.5, -3.0]}, {"right": [1.0, 0.0], "log_p": [-1.5, -1.0]}]
    first = Standing.of("a", before, None)
    assert first.right.tolist() == [0.5, 0]
    assert first.log_p.tolist() == [-2, -np.inf]
    assert first.gain is None
    second = Standing.of("a", now, before)
    assert second.maj == 0.75
    assert second.gain is not None
    assert second.gain.tolist() == [1.0, np.inf]
