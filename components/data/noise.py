"""Wrong labels on purpose, for experiments on how fast each q fits them."""

import random
from collections.abc import Sequence

from components.errors import UserError

Answers = tuple[str, ...]


def label_noise(answers: Sequence[Answers], share: float, seed: int) -> list[Answers]:
    """Replace the answers of a share of the examples by the training target of another example.

    answers: the accepted answers of each example, the training target first. The share is rounded to whole examples;
    a wrong answer comes without aliases and is never one that its example accepts. The seed decides which and what.

    Raises:
        UserError: an example is to be replaced and no other example has another answer.
    """
    draw = random.Random(seed)
    noisy = list(answers)
    for row in draw.sample(range(len(answers)), round(share * len(answers))):
        noisy[row] = (_another(answers, row, draw.randrange(len(answers))),)
    return noisy


def _another(answers: Sequence[Answers], row: int, start: int) -> str:
    """The first answer from `start` on, going round, that the example in `row` does not accept."""
    for offset in range(len(answers)):
        target = answers[(start + offset) % len(answers)][0]
        if target not in answers[row]:
            return target
    raise UserError(f"every example has the answer '{answers[row][0]}'; there is no wrong one to take for label noise.")
