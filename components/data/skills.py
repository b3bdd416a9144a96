"""The embedded task: a string of digits whose gold answer is the sorted string, in one format and without a rationale.

The embedded base model (components.policy.embedded) knows six skills and six answer formats. Asked a bare problem, it
decides for this task's skill and this task's format only once in so many times: a cold start that fits on a laptop.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

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
TARGET_SKILL, TARGET_FORMAT = "s", 0


class Preference(NamedTuple):
    """How often the base model, given a bare problem, decides for the target skill and for the target format."""

    skill: float
    format: float


# From the cold start the model thinks of the right skill once in a hundred rationales, which sampling finds, and then
# writes the answer in the right format once in ten million, which it never does: P of a problem is about 1e-9.
PREFERENCES = {
    "warm": Preference(skill=0.3, format=0.3),
    "cold": Preference(skill=1e-2, format=1e-7),
    "colder": Preference(skill=1e-2, format=1e-8),
}


def problem(digits: str) -> str:
    return f"{digits}?"


def instruction(digits: str, skill: str, answer_format: int) -> str:
    """A prompt that says which skill and format to use; only the base model's teaching has these."""
    return f"{skill}{answer_format}:{digits}?"


def rationale(digits: str, skill: str) -> str:
    return f"<think>{skill}{SKILLS[skill](digits)}</think>"


def answer(digits: str, skill: str = TARGET_SKILL, answer_format: int = TARGET_FORMAT) -> str:
    return FORMATS[answer_format].format(SKILLS[skill](digits))


def read(path: Path, skipped: Counter[str]) -> Iterator[Example]:
    """The problems of one JSON Lines file, {"prompt", "answer"} a line, as `generate` wrote it."""
    return read_lines(path, skipped)


def generate(folder: Path, *, train: int = 2100, test: int = 200, seed: int = 0) -> None:
    """Write train.jsonl and test.jsonl: distinct 4-digit problems, none in both files."""
    numbers = random.Random(seed).sample(range(10_000), train + test)
    folder.mkdir(parents=True, exist_ok=True)
    for name, chosen in (("train", numbers[:train]), ("test", numbers[train:])):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for digits in (f"{number:04d}" for number in chosen):
                file.write(json.dumps({"id": digits, "prompt": problem(digits), "answer": answer(digits)}) + "\n")
