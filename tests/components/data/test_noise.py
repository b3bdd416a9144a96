"""Label noise: the right number of wrong answers, and never a right one."""

import pytest

from components.data.noise import label_noise
from components.errors import UserError

ANSWERS = [(str(number % 7), f"alias {number % 7}") for number in range(200)]


@pytest.mark.parametrize(("share", "changed"), [(0, 0), (0.1, 20), (0.5, 100), (1, 200)])
def test_share_of_answers_becomes_another_examples_answer(share: float, changed: int) -> None:
    noisy = label_noise(ANSWERS, share, seed=3)
    different = [(old, new) for old, new in zip(ANSWERS, noisy, strict=True) if old != new]
    assert len(different) == changed
    assert all(len(new) == 1 and new[0] not in old and (new[0], f"alias {new[0]}") in ANSWERS for old, new in different)


def test_seed_decides_and_the_input_is_left_alone() -> None:
    before = list(ANSWERS)
    assert label_noise(ANSWERS, 0.3, 1) == label_noise(ANSWERS, 0.3, 1) != label_noise(ANSWERS, 0.3, 2)
    assert before == ANSWERS


def test_an_alias_is_no_wrong_answer() -> None:
    noisy = label_noise([("a", "b"), ("b",), ("c",)], 1, seed=0)
    assert noisy[0] == ("c",)


def test_all_answers_alike_is_one_sentence() -> None:
    with pytest.raises(UserError, match="every example has the answer 'yes'"):
        label_noise([("yes",), ("yes",)], 0.5, seed=0)
    assert label_noise([("yes",)], 0, seed=0) == [("yes",)]
