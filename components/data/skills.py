"""The embedded task: strings of digits in four kinds of problems, each with a skill and an answer format of its own.

The embedded base model (components.policy.embedded) knows six skills and six answer formats. Asked a bare problem, it
decides for the skill and the format of the problem's kind only once in so many times, and how often differs from kind
to kind: a cold start that fits on a laptop. Gold answers come without rationales.
"""

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from components.config import Start
from components.data.example import Example
from components.data.jsonl import read as read_lines

SKILLS: dict[str, Callable[[str], str]] = {
    "s": lambda digits: "".join(sorted(digits)),
    "c": lambda digits: digits,
    "r": lambda digits: digits[::-1],
    "l": lambda digits: digits[1:] + digits[:1],
    "m": lambda digits: digits[2:] + digits[:2],
    "i": lambda digits: "".join(str((int(digit) + 1) % 10) for digit in digits),
}
FORMATS = ("a:{}", "b={}", "({})", "[{}]", "#{}", "{}.")


class Kind(NamedTuple):
    """One kind of problem: the letter that its prompts begin with, and the skill and format of its gold answers."""

    letter: str
    skill: str
    answer_format: int


KINDS = {
    "sort": Kind("w", "s", 0),
    "reverse": Kind("x", "r", 1),
    "rotate": Kind("y", "l", 2),
    "increment": Kind("z", "i", 3),
}


class Preference(NamedTuple):
    """How often the base model, given a bare problem, decides for its kind's skill and for its kind's format."""

    skill: float
    format: float


def _for_all(skill: float, answer_format: float) -> dict[str, Preference]:
    return dict.fromkeys(KINDS, Preference(skill, answer_format))


FOUND = 0.3  # a skill's preference at which every group of rollouts has some with it

# By start and kind. P of a problem is about the product of the two. Sampling finds the skill at every start; the format
# of a cold kind it practically never finds.
PREFERENCES = {
    "mixed": {
        "sort": Preference(skill=0.3, format=0.3),
        "reverse": Preference(skill=0.1, format=1e-2),
        "rotate": Preference(skill=0.1, format=1e-5),
        "increment": Preference(skill=0.1, format=1e-8),
    },
    "warm": _for_all(FOUND, 0.3),
    "cold": _for_all(1e-2, 1e-7),
    "colder": _for_all(1e-2, 1e-8),
}


def preferences(start: Start) -> dict[str, Preference]:
    """Those of a start; a number is the P that all problems begin with."""
    if isinstance(start, float):
        return _for_all(FOUND, start / FOUND)
    return PREFERENCES[start]


def problem(digits: str, kind: str) -> str:
    """A prompt that leaves open which skill its kind takes."""
    return f"{KINDS[kind].letter}{digits}?"


def instruction(digits: str, skill: str, answer_format: int) -> str:
    """A prompt that says which skill and format to use; only the base model's teaching has these."""
    return f"{skill}{answer_format}:{digits}?"


def rationale(digits: str, skill: str) -> str:
    """The thinking that a skill is done by, with the marks around it."""
    return f"<think>{skill}{SKILLS[skill](digits)}</think>"


def answer(digits: str, skill: str, answer_format: int) -> str:
    """What a skill makes of the digits, in an answer format by its number."""
    return FORMATS[answer_format].format(SKILLS[skill](digits))


def gold_answer(digits: str, kind: str) -> str:
    """The answer that a problem of this kind counts as right, by the kind's own skill and format."""
    return answer(digits, KINDS[kind].skill, KINDS[kind].answer_format)


def read(path: Path, skipped: Counter[str]) -> Iterator[Example]:
    """The problems of one JSON Lines file, {"prompt", "answer"} a line, as `generate` wrote it."""
    return read_lines(path, skipped)


def generate(folder: Path, *, train: int = 2100, test: int = 200, seed: int = 0) -> None:
    """Write train.jsonl and test.jsonl: distinct 4-digit strings, none in both files, each kind equally often."""
    numbers = random.Random(seed).sample(range(10_000), train + test)
    folder.mkdir(parents=True, exist_ok=True)
    for name, chosen in (("train", numbers[:train]), ("test", numbers[train:])):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for number, kind in zip(chosen, itertools.cycle(KINDS)):
                digits = f"{number:04d}"
                row = {
                    "id": digits,
                    "prompt": problem(digits, kind),
                    "answer": gold_answer(digits, kind),
                    "kind": kind,
                }
                file.write(json.dumps(row) + "\n")
