"""Which rollouts are kept as text: the same problems each time, one right and one wrong, none of them too long."""

from components.data.example import Example
from components.evaluation.evaluate import score
from components.rollout.engine import Rollout
from components.training.shown import LONGEST, PROBLEMS, as_text, places_shown


def example(number: int, kind: str = "") -> Example:
    return Example(id=f"e{number}", prompt=f"p{number}", answers=("7",), group=f"e{number}", kind=kind)


def test_every_kind_is_shown_before_a_second_of_one() -> None:
    kinds = ["a"] * 10 + ["b"] * 5 + ["c"]
    examples = [example(number, kind) for number, kind in enumerate(kinds)]
    assert places_shown(examples) == {0, 10, 15, 1, 2, 3}
    assert places_shown([example(number) for number in range(20)]) == set(range(PROBLEMS))
    assert places_shown(examples[:2]) == {0, 1}


class Reading:
    """Reads an id as the letter so far behind x."""

    def text(self, ids: tuple[int, ...]) -> str:
        return "".join(chr(120 + one) for one in ids)


def test_the_first_right_and_the_first_wrong_one() -> None:
    rollouts = [Rollout((), (number,) * length, (), (), "stop", 0) for number, length in ((0, 2), (1, 9999), (2, 1))]
    found = as_text(Reading(), example(1), score(example(1), ["3", "7", "4"], "jsonl"), rollouts)  # type: ignore[arg-type]
    assert found["share"] == 1 / 3
    assert found["wrong"] == ["xx", "3"]
    rationale, answer = found["right"]
    assert answer == "7"
    assert len(rationale) == LONGEST + len(" […] ")
    only = as_text(Reading(), example(1), score(example(1), ["7"], "jsonl"), rollouts[:1])  # type: ignore[arg-type]
    assert only["wrong"] is None
