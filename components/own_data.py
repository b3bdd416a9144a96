"""A user's table of questions and answers, whatever its columns are called, as the lines that the task jsonl reads."""

import csv
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.data.reading import Damaged, digest, json_array, json_lines, open_text
from components.errors import UserError
from components.names import is_name

HELD_OUT = 0.1  # of the questions, where no other file has any to test on
LONG_ANSWER = 20  # words; what is longer is seldom an answer that can be compared
COMMON = 0.5  # the share of one answer from which on a model that always says it looks good
REPEATED, CONTRADICTED = "repeated", "repeated with another answer"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Columns:
    """What the fields of a table are called; those of an object within a field are named as in `answers.text`."""

    question: str
    answer: str
    kind: str | None = None


@dataclass(frozen=True)
class Table:
    """What was read of a file: len(lines) + skipped.total() is the number of its rows.

    lines: as the task jsonl takes them. skipped: the rest, by reason.
    """

    path: Path
    lines: list[dict[str, Any]]
    skipped: Counter[str]

    def told(self) -> str:
        """How many there are and what was left out, in a line."""
        left_out = "".join(f", {count} left out: {reason}" for reason, count in sorted(self.skipped.items()))
        return f"{self.path}: {len(self.lines)} questions{left_out}"


def field_names(path: Path) -> list[str]:
    """What the first rows of a table have, in their order; of objects in them the fields within.

    Raises:
        UserError: the file cannot be read, or has no rows.
    """
    names = {name: None for row in islice(_rows(path, Counter()), 100) for name in _names(row)}
    if not names:
        raise UserError(f"{path} has no rows of named fields; give a table of questions and answers.")
    return list(names)


def read_table(path: Path, columns: Columns) -> Table:
    """The questions of a table, each once.

    An answer is a text, a number, or a list of them, of which the first is what is trained and the others count as
    right.

    Raises:
        UserError: the file cannot be read, has no such fields, or no row of it is a question with its answer.
    """
    known = field_names(path)
    for name in filter(None, (columns.question, columns.answer, columns.kind)):
        if name not in known:
            raise UserError(f"{path} has no field '{name}'; it has {', '.join(known)}.")
    skipped: Counter[str] = Counter()
    lines = list(_distinct(_read(_rows(path, skipped), columns, skipped), skipped))
    if not lines:
        raise UserError(f"no row of {path} is a question with its answer: {_counts(skipped)}; check the fields' names.")
    return Table(path, lines, skipped)


def hold_out(lines: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and test questions: a tenth is for the test, by the questions alone, whatever their order.

    Raises:
        UserError: there are too few to divide.
    """
    if len(lines) < 3:
        raise UserError(f"{len(lines)} questions are too few to train, validate and test on; give three or more.")
    chosen = sorted(lines, key=lambda line: digest(line["prompt"]))[: math.ceil(HELD_OUT * len(lines))]
    held_out = {line["prompt"] for line in chosen}
    return [line for line in lines if line["prompt"] not in held_out], [
        line for line in lines if line["prompt"] in held_out
    ]


def write_lines(lines: Iterable[dict[str, Any]], path: Path) -> None:
    """As the task jsonl reads them."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def doubts(lines: Sequence[dict[str, Any]]) -> list[str]:
    """What looks wrong about the answers, a sentence each."""
    found = []
    long = [line for line in lines if "\n" in line["answer"] or len(line["answer"].split()) > LONG_ANSWER]
    if long:
        found.append(
            f"{len(long)} answers have several lines or more than {LONG_ANSWER} words, as that of"
            f" {_short(long[0]['prompt'])}: if a rationale is in them, leave it out, for a sample is right only if it"
            " has the whole answer."
        )
    answer, count = Counter(line["answer"] for line in lines).most_common(1)[0]
    if count > COMMON * len(lines) and len(lines) > 1:
        found.append(
            f"{count} of {len(lines)} answers are {_short(answer)}: a model that always says so is right that often"
            " without a thought; give more of the others."
        )
    given = [line for line in lines if line["answer"].casefold() in line["prompt"].casefold()]
    if len(given) > COMMON * len(lines):
        found.append(
            f"{len(given)} of {len(lines)} questions hold their own answer word for word, as"
            f" {_short(given[0]['prompt'])}; that is right only where it is one of several to choose from."
        )
    return found


def _read(rows: Iterable[Row], columns: Columns, skipped: Counter[str]) -> Iterator[dict[str, Any]]:
    for row in rows:
        try:
            yield _line(row, columns)
        except Damaged as damaged:
            skipped[str(damaged)] += 1


def _line(row: Row, columns: Columns) -> dict[str, Any]:
    answers = _value(row, columns.answer)
    texts = [_text(value, "answer") for value in (answers if isinstance(answers, list) else [answers])]
    if not texts:
        raise Damaged("no answer")
    line: dict[str, Any] = {"prompt": _text(_value(row, columns.question), "question"), "answer": texts[0]}
    if others := [text for text in dict.fromkeys(texts) if text != texts[0]]:
        line["aliases"] = others
    if columns.kind is not None:
        line["kind"] = _text(_value(row, columns.kind), "kind")
        if not is_name(line["kind"]):
            raise Damaged("kind is no short name of letters, digits, dots, dashes and underscores")
    return line


def _text(value: Any, what: str) -> str:
    if value is None:
        raise Damaged(f"no {what}")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Damaged(f"{what} is neither text nor number")
    if isinstance(value, float):
        value = f"{value:.15g}"
    text = str(value).strip()
    if not text:
        raise Damaged(f"empty {what}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Damaged("text is not UTF-8") from None
    return text


def _distinct(lines: Iterable[dict[str, Any]], skipped: Counter[str]) -> Iterator[dict[str, Any]]:
    answers: dict[str, str] = {}
    for line in lines:
        question = digest(line["prompt"])
        if question not in answers:
            answers[question] = line["answer"]
            yield line
        else:
            skipped[REPEATED if answers[question] == line["answer"] else CONTRADICTED] += 1


def _rows(path: Path, skipped: Counter[str]) -> Iterator[Row]:
    """The rows of a file that have names for their fields, in the form its name tells."""
    read: dict[str, Callable[[Path, Counter[str]], Iterator[Any]]] = {
        ".jsonl": json_lines, ".json": _json, ".csv": _csv, ".parquet": _parquet,
    }  # fmt: skip
    if path.suffix.lower() not in read:
        raise UserError(f"{path} is none of {', '.join(read)}; save the table as one of them.")
    for row in read[path.suffix.lower()](path, skipped):
        if isinstance(row, dict):
            yield row
        else:
            skipped["no JSON object"] += 1


def _json(path: Path, skipped: Counter[str]) -> Iterator[Any]:
    """One array, or one object a line."""
    with open_text(path) as file:
        array = file.read(1000).lstrip("\ufeff \t\r\n").startswith("[")
    yield from (json_array if array else json_lines)(path, skipped)


def _csv(path: Path, skipped: Counter[str]) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    with open_text(path) as file:
        try:
            for row in csv.DictReader(file):
                if None in row or None in row.values():
                    skipped["more or fewer fields than the first line"] += 1
                else:
                    yield row
        except csv.Error as error:
            raise UserError(f"{path} is no table of comma-separated values: {error}; save it again.") from None


def _parquet(path: Path, _: Counter[str]) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is no Parquet file that can be read: {' '.join(str(error).split())[:200]}.") from None


def _names(row: Row, prefix: str = "") -> Iterator[str]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _value(row: Any, name: str) -> Any:
    """The field of that name, which may lie in objects: `answers.text`; None where there is none."""
    if not isinstance(row, dict) or name in row:
        return row.get(name) if isinstance(row, dict) else None
    outer, _, inner = name.partition(".")
    return _value(row.get(outer), inner) if inner else None


def _counts(skipped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in skipped.items()) or "it is empty"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")
