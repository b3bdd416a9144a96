"""A user's own lines: read whole, or one sentence that says which line is broken and how it should look."""

import json
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from components.data import jsonl, reading
from components.data.example import Example
from components.data.raw_files import TASKS
from components.errors import UserError

GOOD = '{"prompt": "1+1", "answer": "2"}'


def load(tmp_path: Path, *lines: str) -> Any:
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return jsonl.load(path)


def test_all_fields(tmp_path: Path) -> None:
    row = {"id": 7, "prompt": " 1+1 = \n", "answer": " 2 ", "aliases": ["two", "2"], "answers": ["II"], "group": "sums"}
    loaded = load(tmp_path, json.dumps(row))
    assert loaded.examples == [Example("7", " 1+1 = \n", ("2", "II", "two"), "sums")]


def test_a_kind_is_a_short_name(tmp_path: Path) -> None:
    kinds = [
        example.kind for example in load(tmp_path, GOOD, '{"prompt": "x", "answer": "y", "kind": "2-hop"}').examples
    ]
    assert kinds == ["", "2-hop"]
    for wrong in ("a/b", "..", "two words", "=1+1", "k" * 61):
        with pytest.raises(UserError, match=r":1: kind is no name of at most 60 letters"):
            load(tmp_path, json.dumps({"prompt": "x", "answer": "y", "kind": wrong}))


def test_answers_alone_give_the_target_first(tmp_path: Path) -> None:
    (example,) = load(tmp_path, '{"id": "a", "prompt": "x", "answers": ["y", "z"]}').examples
    assert example == Example("a", "x", ("y", "z"), "a")


def test_null_is_the_same_as_missing(tmp_path: Path) -> None:
    row = {"id": None, "prompt": "x", "answer": None, "answers": ["y"], "aliases": None, "group": None}
    assert load(tmp_path, json.dumps(row)).examples == load(tmp_path, '{"prompt": "x", "answer": "y"}').examples


def test_missing_ids_depend_on_the_prompt_alone(tmp_path: Path) -> None:
    first, second = load(tmp_path, GOOD, "", '{"prompt": "2+2", "answer": "4"}').examples
    assert first.id != second.id
    assert first.group == first.id
    assert load(tmp_path, GOOD).examples == [first]


def test_repeated_lines_are_counted(tmp_path: Path) -> None:
    loaded = load(
        tmp_path, GOOD, GOOD, '{"id": 1, "prompt": "x", "answer": "y"}', '{"id": "1", "prompt": "z", "answer": "y"}'
    )
    assert len(loaded.examples) == 2
    assert loaded.skipped == {"duplicate prompt": 1, "duplicate id": 1}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"prompt": "x", "answer": ', "broken JSON"),
        ("prompt,answer", "broken JSON"),
        ('["x", "y"]', "no JSON object"),
        ('{"answer": "y"}', "no prompt"),
        ('{"prompt": " ", "answer": "y"}', "empty prompt"),
        ('{"prompt": "x"}', "no answer"),
        ('{"prompt": "x", "answer": ""}', "empty answer"),
        ('{"prompt": "x", "answer": 4}', "answer is no text"),
        ('{"prompt": "x", "answers": []}', "no answer"),
        ('{"prompt": "x", "answer": "y", "aliases": "z"}', "aliases is no list of texts"),
        ('{"prompt": "x", "answer": "y", "answers": [""]}', "answers is no list of texts"),
        ('{"prompt": "x", "answer": "y", "id": 1.5}', "id is neither text nor whole number"),
        ('{"prompt": "x", "answer": "y", "group": []}', "group is neither text nor whole number"),
        ('{"prompt": "\\ud800", "answer": "y"}', "text is not UTF-8"),
    ],
)
def test_a_broken_line_is_one_sentence_with_file_line_and_cure(tmp_path: Path, line: str, fault: str) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, GOOD, "", line, '{"prompt": "3", "answer": "3"}')
    assert str(error.value) == (
        f'{tmp_path}/train.jsonl:3: {fault}; write {{"prompt": "...", "answer": "..."}} on a line, in UTF-8.'
    )


def test_other_encodings(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"prompt": "größer?", "answer": "ja"}\n', encoding="utf-8-sig")
    assert jsonl.load(path).examples[0].prompt == "größer?"
    path.write_text('{"prompt": "größer?", "answer": "ja"}\n', encoding="latin-1")
    with pytest.raises(UserError, match=r"train\.jsonl:1: text is not UTF-8"):
        jsonl.load(path)


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "LONGEST", 1 << 20)
    path = tmp_path / "train.jsonl"
    with path.open("w") as file:
        file.write(f"{GOOD}\n{GOOD[:-2]}")
        file.truncate(1 << 27)  # 128 MiB of NUL bytes, which take no room on a disk
    tracemalloc.start()
    with pytest.raises(UserError, match=r"train\.jsonl:2: a line longer than 16,777,216 characters; write"):
        jsonl.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


@pytest.mark.parametrize("task", ["jsonl", "skills"])
def test_line_ends_and_marks_of_other_systems(tmp_path: Path, task: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n\r\n" + GOOD.replace("1+1", "1+2").encode() + b"\r\n")
    assert [example.prompt for example in TASKS[task].read(path, Counter())] == ["1+1", "1+2"]


@pytest.mark.parametrize("inside", ["[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000])
def test_nesting_without_end_is_one_sentence(tmp_path: Path, inside: str) -> None:
    with pytest.raises(UserError, match=r"train\.jsonl:2: broken JSON; write"):
        load(tmp_path, GOOD, f'{{"prompt": "x", "answer": "y", "more": {inside}}}')


def test_a_nul_is_text_where_json_writes_it_and_damage_where_it_is_a_byte(tmp_path: Path) -> None:
    row = {"id": "a\0b", "prompt": "a\0b", "answer": "\0"}
    assert load(tmp_path, json.dumps(row)).examples == [Example("a\0b", "a\0b", ("\0",), "a\0b")]
    with pytest.raises(UserError, match=r"train\.jsonl:2: broken JSON"):
        load(tmp_path, GOOD, '{"prompt": "a\0b", "answer": "c"}')


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.jsonl"):
        jsonl.load(tmp_path / "none.jsonl")
