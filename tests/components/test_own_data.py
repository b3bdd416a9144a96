"""A user's own table: the same lines from every form of file, and what is left out is counted."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.data import jsonl
from components.errors import UserError
from components.own_data import Columns, doubts, field_names, hold_out, read_table, write_lines

ROWS = [
    {"q": "What is 2 + 2? ", "gold": "4", "sort": "sums"},
    {"q": "What is 3 + 4?", "gold": "7", "sort": "sums"},
    {"q": "Größer als 1?", "gold": "ja, größer", "sort": "text"},
]
COLUMNS = Columns("q", "gold", "sort")


def as_csv(path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)


WRITERS: dict[str, Callable[[Path], object]] = {
    "x.jsonl": lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8"),
    "x.json": lambda path: path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8"),
    "lines.json": lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8"),
    "x.csv": as_csv,
    "X.PARQUET": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_form_of_file_gives_lines_that_the_task_reads(tmp_path: Path, name: str):
    WRITERS[name](tmp_path / name)
    assert field_names(tmp_path / name) == ["q", "gold", "sort"]
    table = read_table(tmp_path / name, COLUMNS)
    assert not table.skipped
    write_lines(table.lines, tmp_path / "train.jsonl")
    read = jsonl.load(tmp_path / "train.jsonl").examples
    assert [(item.prompt, *item.answers, item.kind) for item in read] == [
        ("What is 2 + 2?", "4", "sums"), ("What is 3 + 4?", "7", "sums"), ("Größer als 1?", "ja, größer", "text"),
    ]  # fmt: skip


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_what_is_left_out_is_counted(tmp_path: Path):
    path = write(
        tmp_path / "x.jsonl",
        {"q": "a", "gold": 1}, {"q": "a", "gold": 1.0}, {"q": "a", "gold": "2"}, {"q": "b"}, {"q": "", "gold": "1"},
        {"q": "c", "gold": True}, {"q": "d", "gold": []}, "{broken", [1], {"q": "\ud800", "gold": "1"},
        {"q": "e", "gold": [0.1, "one tenth", 0.1]},
    )  # fmt: skip
    table = read_table(path, Columns("q", "gold"))
    assert table.lines == [
        {"prompt": "a", "answer": "1"}, {"prompt": "e", "answer": "0.1", "aliases": ["one tenth"]},
    ]  # fmt: skip
    assert table.skipped == {
        "repeated": 1, "repeated with another answer": 1, "no answer": 2, "empty question": 1,
        "answer is neither text nor number": 1, "broken JSON": 1, "no JSON object": 1, "text is not UTF-8": 1,
    }  # fmt: skip
    assert len(table.lines) + table.skipped.total() == 11
    assert table.told().startswith(f"{path}: 2 questions, 1 left out: answer is neither text nor number, ")


def test_a_field_may_lie_in_another(tmp_path: Path):
    path = write(tmp_path / "x.jsonl", {"q": "a", "answers": {"text": ["x", "y"], "at": [3]}, "id.s": 1})
    assert field_names(path) == ["q", "answers.text", "answers.at", "id.s"]
    assert read_table(path, Columns("q", "answers.text")).lines == [{"prompt": "a", "answer": "x", "aliases": ["y"]}]
    assert read_table(path, Columns("q", "id.s")).lines == [{"prompt": "a", "answer": "1"}]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.txt", "", "is none of .jsonl, .json, .csv, .parquet"),
        ("x.parquet", "no table", "is no Parquet file that can be read"),
        ("x.csv", "", "has no rows of named fields"),
        ("x.csv", "q,answer\na,1\n", "has no field 'gold'; it has q, answer."),
        (
            "x.csv",
            "q,gold\na\nb,\n",
            "its answer: 1 more or fewer fields than the first line, 1 empty",
        ),
        ("x.jsonl", '{"q": "a", "gold": null}\n', "is a question with its answer: 1 no answer"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_in_a_sentence(tmp_path: Path, name: str, content: str, told: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=r"\.$") as refused:
        read_table(tmp_path / name, Columns("q", "gold"))
    assert told in str(refused.value)


def test_a_tenth_is_held_out_whatever_the_order():
    lines = [{"prompt": f"question {i}", "answer": str(i)} for i in range(95)]
    train, test = hold_out(lines)
    assert (len(train), len(test)) == (85, 10)
    again = hold_out(lines[::-1])
    assert (again[0][::-1], again[1][::-1]) == (train, test)
    assert sorted(train + test, key=lines.index) == lines
    with pytest.raises(UserError, match="2 questions are too few"):
        hold_out(lines[:2])


def test_answers_that_look_wrong_are_named():
    good = [{"prompt": f"What is {i}?", "answer": f"the {i}-th"} for i in range(8)]
    assert doubts(good) == []
    [rationale] = doubts([*good, {"prompt": "Why?", "answer": "Add them.\n#### 5"}])
    assert rationale.startswith("1 answers have several lines or more than 20 words, as that of 'Why?'")
    [common] = doubts([*good, *({"prompt": f"Is it {i}?", "answer": "yes"} for i in range(9))])
    assert common.startswith("9 of 17 answers are 'yes'")
    [given] = doubts([{"prompt": f"{i} or {i + 1}?", "answer": str(i)} for i in range(8)])
    assert given.startswith("8 of 8 questions hold their own answer")
