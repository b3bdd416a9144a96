"""A user's own lines: read whole, or one sentence that says which line is broken and how it should look."""

import json
from pathlib import Path
from typing import Any

import pytest

from components.data import jsonl
from components.data.example import Example
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
    for wrong in ("a/b", "two words", "k" * 41):
        with pytest.raises(UserError, match=r":1: kind is no name of at most 40 letters"):
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


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.jsonl"):
        jsonl.load(tmp_path / "none.jsonl")
