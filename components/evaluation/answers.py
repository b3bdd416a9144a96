"""Is a sampled answer right? Normalisation and matching, for training rewards, evaluation and the votes of maj@k.

A gold answer that is empty, or that normalisation leaves nothing of ("The"), is never a substring of everything: it
matches only a sample that is the same text but for case and surrounding blanks, and an empty one matches nothing.
"""

import re
import string
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import NamedTuple

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)

MINUS = str.maketrans("\u2212\u2010\u2011\u2013\u2014", "-----")  # the minus sign, hyphens and dashes
CURRENCY = re.compile(r"[$€£¥]|\b(?:usd|eur|gbp)\b")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
SIGN = re.compile(r"(^|[^\d\s.)%]\s*)([+-])\s+(?=[\d.])")  # of a number: after another number, it is an operator
PERCENT = re.compile(r"(?<=\d)\s+%")
TAIL = re.compile(r"(?:n\\+|[\s.])*")  # of a text read backwards, so that a long run of blanks is looked at once

LONGEST_NUMBER = 1000  # characters; Decimal cannot multiply what has a million
NUMBER = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+))(%| percent)?(?: (thousand|million|billion|trillion))?")
SCALES = {
    None: Decimal(1),
    "%": Decimal("0.01"),
    " percent": Decimal("0.01"),
    "thousand": Decimal(10) ** 3,
    "million": Decimal(10) ** 6,
    "billion": Decimal(10) ** 9,
    "trillion": Decimal(10) ** 12,
}


class Number(NamedTuple):
    """A number as an answer has it: its value, and how finely it is printed."""

    amount: Decimal
    unit: Decimal  # what one step of the last printed digit is worth


def exact_match(sampled: str, answers: Sequence[str]) -> bool:
    """The training reward: the sample is the training target y* = answers[0] itself, but for surrounding blanks."""
    return sampled.strip() == answers[0] != ""


def is_correct(sampled: str, answers: Sequence[str], task: str) -> bool:
    """What evaluation counts as right: a gold answer, or an alias, is a substring of the sample, both normalised.

    As in the paper (https://arxiv.org/abs/2604.25907), and lenient: it finds "no" in "unknown" and 5 in 15. That is why
    `exact` is reported beside it.
    """
    return _matches(sampled, answers, task, str.__contains__)


def exact(sampled: str, answers: Sequence[str], task: str) -> bool:
    """The sample equals a gold answer or an alias, both normalised: the data sets' official exact match."""
    return _matches(sampled, answers, task, str.__eq__)


def normalize(text: str, task: str) -> str:
    """The form in which answers of a task ("finqa", "hotpotqa", "musique", "skills", "jsonl") are compared.

    hotpotqa, musique: lower case, ASCII punctuation removed, the words a, an and the removed, white space collapsed;
        `normalize_answer` of https://github.com/hotpotqa/hotpot (hotpot_evaluate_v1.py) and
        https://github.com/StonyBrookNLP/musique (metrics/answer.py).
    finqa: lower case; a literal backslash-n and full stops at the end removed; every minus sign and dash written "-";
        currency signs ($, €, £, ¥) and codes (usd, eur, gbp) removed; commas between a digit and three digits removed;
        no blank after a sign that precedes a number and none before "%"; white space collapsed. Signs, percent signs,
        decimals and words such as "million" stay: 34.7 is not 34.7%, 5.0 is not 5, and $ 103.7 million is not 103.7.
    skills, jsonl: surrounding blanks removed, case folded.

    Raises:
        ValueError: the task is unknown.
    """
    if task not in NORMALIZED:
        raise ValueError(f"no answers are normalised for task {task!r}")
    return NORMALIZED[task](text)


def same_value(sampled: str, answers: Sequence[str]) -> bool:
    """FinQA's answers by value: the sample, rounded to as many digits as the gold answer prints, is the gold answer.

    So 0.347, 34.72% and 34.7% are the gold answer "34.7%", and 34.7 is not. Both texts must be one number, with a
    percent sign or a word such as "million" at most; any other gold answer (yes, no) must be equal when normalised.
    """
    return any(_same_value(sampled, answer) for answer in answers)


def _matches(sampled: str, answers: Sequence[str], task: str, compare: Callable[[str, str], bool]) -> bool:
    text = normalize(sampled, task)
    return any(
        compare(text, gold) if (gold := normalize(answer, task)) else _plain(sampled) == _plain(answer) != ""
        for answer in answers
    )


def _plain(text: str) -> str:
    return text.strip().casefold()


def _normalize_words(text: str) -> str:
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def _normalize_financial(text: str) -> str:
    text = text.lower().translate(MINUS)
    tail = TAIL.match(text[::-1])
    text = text[: len(text) - (tail.end() if tail else 0)]
    text = THOUSANDS.sub("", CURRENCY.sub(" ", text))
    text = PERCENT.sub("%", SIGN.sub(r"\1\2", text.strip()))
    return " ".join(text.split())


NORMALIZED: dict[str, Callable[[str], str]] = {
    "skills": _plain,
    "jsonl": _plain,
    "finqa": _normalize_financial,
    "hotpotqa": _normalize_words,
    "musique": _normalize_words,
}


def _same_value(sampled: str, answer: str) -> bool:
    gold, value = _number(answer), _number(sampled)
    if gold is None:
        return exact(sampled, [answer], "finqa")
    return value is not None and abs(value.amount - gold.amount) <= gold.unit / 2


def _number(text: str) -> Number | None:
    """The number that is all of a financial answer, or None."""
    match = NUMBER.fullmatch(normalize(text, "finqa"))
    if match is None or len(match[0]) > LONGEST_NUMBER:
        return None
    digits, percent, word = match.groups()
    scale = SCALES[percent] * SCALES[word]
    decimals = len(digits.partition(".")[2])
    return Number(Decimal(digits) * scale, Decimal(1).scaleb(-decimals) * scale)
