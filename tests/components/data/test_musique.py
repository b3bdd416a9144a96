"""MuSiQue items as published and as damaged mirrors have them."""

import json
from pathlib import Path
from typing import Any

import pytest

from components.data import musique
from components.errors import UserError


def paragraph(idx: Any, title: Any, text: Any) -> dict[str, Any]:
    return {"idx": idx, "title": title, "paragraph_text": text, "is_supporting": False}


def item(number: int = 1, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"2hop__{number}_{number + 1}",
        "paragraphs": [
            paragraph(0, "Lake", "The lake is deep."),
            paragraph(1, "Lake", "It lies in Upland. "),
            paragraph(2, "Upland", "Its capital is Rivertown."),
        ],
        "question": f"What is the capital of where lake {number} lies?",
        "question_decomposition": [
            {"id": number, "question": "x", "answer": "Upland", "paragraph_support_idx": 1},
            {"id": number + 1, "question": "y", "answer": "Rivertown", "paragraph_support_idx": 2},
        ],
        "answer": "Rivertown",
        "answer_aliases": ["River Town", "Rivertown", " ", "River Town"],
        "answerable": True,
    } | fields


def load(tmp_path: Path, *items: Any) -> Any:
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, items)) + "\n")
    loaded = musique.load(path)
    assert len(loaded.examples) + loaded.skipped.total() == len(items)
    return loaded


def test_problem_is_numbered_paragraphs_and_question(tmp_path: Path) -> None:
    (example,) = load(tmp_path, item()).examples
    assert example.prompt == (
        "[0] Lake\nThe lake is deep.\n\n[1] Lake\nIt lies in Upland.\n\n[2] Upland\nIts capital is Rivertown.\n\n"
        "Question: What is the capital of where lake 1 lies?"
    )


def test_aliases_follow_the_answer_once_each(tmp_path: Path) -> None:
    (example,) = load(tmp_path, item()).examples
    assert example.answers == ("Rivertown", "River Town")


@pytest.mark.parametrize("steps", [[], [{"question": "x"}], [{"question": "x", "paragraph_support_idx": None}]])
def test_steps_that_name_no_paragraph_do_not_matter(tmp_path: Path, steps: Any) -> None:
    assert len(load(tmp_path, item(question_decomposition=steps)).examples) == 1


@pytest.mark.parametrize("aliases", [None, "River Town", [None, 3]])
def test_damaged_aliases_are_left_out(tmp_path: Path, aliases: Any) -> None:
    (example,) = load(tmp_path, item(answer_aliases=aliases)).examples
    assert example.answers == ("Rivertown",)


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("not answerable", {"answerable": False, "id": "2hop__1_2"}),
        ("no paragraphs", {"paragraphs": []}),
        ("no paragraphs", {"paragraphs": None}),
        ("damaged paragraphs", {"paragraphs": [paragraph(1, "a", "b"), paragraph(1, "c", "d")]}),
        ("damaged paragraphs", {"paragraphs": [paragraph(1, "a", None), paragraph(2, "c", "d")]}),
        ("damaged paragraphs", {"paragraphs": [{"title": "a", "paragraph_text": "b"}]}),
        ("damaged paragraphs", {"paragraphs": ["a", "b"]}),
        ("supporting paragraph missing", {"paragraphs": item()["paragraphs"][:2]}),
        ("empty answer", {"answer": ""}),
        ("no answer", {"answer": None}),
        ("duplicate prompt", {"question": item(1)["question"]}),
        ("duplicate id", {"id": "2hop__1_2"}),
    ],
)
def test_damaged_items_are_counted_by_reason(tmp_path: Path, reason: str, fields: dict[str, Any]) -> None:
    loaded = load(tmp_path, item(1), item(2, **fields), item(3))
    assert [example.id for example in loaded.examples] == ["2hop__1_2", "2hop__3_4"]
    assert loaded.skipped == {reason: 1}


def test_last_line_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(item(1)) + "\n" + json.dumps(item(2))[:-40])
    loaded = musique.load(path)
    assert len(loaded.examples) == 1
    assert loaded.skipped == {"broken JSON": 1}


def test_an_array_instead_of_lines_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps([1, 2], indent=1))
    with pytest.raises(UserError, match="holds no JSON Lines"):
        musique.load(path)


@pytest.mark.parametrize(("name", "present"), [("train", 100), ("dev", 80)])
def test_real_samples(real_samples: Path, name: str, present: int) -> None:
    loaded = musique.load(real_samples / "musique" / f"{name}.jsonl")
    assert len(loaded.examples) == present
    assert not loaded.skipped
    assert sum(len(example.answers) > 1 for example in loaded.examples) > present / 5
    assert all(f"[{idx}] " in example.prompt for example in loaded.examples for idx in range(20))
