"""HotPotQA items as published and as damaged mirrors have them."""

import json
from pathlib import Path
from typing import Any

import pytest

from components.data import hotpotqa


def item(number: int = 1, **fields: Any) -> dict[str, Any]:
    return {
        "_id": f"5a{number:04d}",
        "answer": "Ada",
        "question": f"Who built the bridge over brook {number}?",
        "supporting_facts": [["Brook", 0], ["Bridge", 1]],
        "context": [
            ["Brook", ["A brook runs by.", " It has a bridge."]],
            ["Mill", ["A mill stands there."]],
            ["Bridge", ["It is old.", "", " Ada built it."]],
        ],
        "type": "bridge",
        "level": "easy",
    } | fields


def load(tmp_path: Path, *items: Any) -> Any:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(items))
    loaded = hotpotqa.load(path)
    assert len(loaded.examples) + loaded.skipped.total() == len(items)
    return loaded


def test_problem_is_titled_paragraphs_and_question(tmp_path: Path) -> None:
    (example,) = load(tmp_path, item()).examples
    assert example.prompt == (
        "Brook\nA brook runs by. It has a bridge.\n\n"
        "Mill\nA mill stands there.\n\n"
        "Bridge\nIt is old. Ada built it.\n\n"
        "Question: Who built the bridge over brook 1?"
    )
    assert (example.id, example.answers) == ("5a0001", ("Ada",))


def test_html_entities_are_resolved_in_prompt_and_answer_alike(tmp_path: Path) -> None:
    context = [["Brook", ["Smith &amp; Sons &quot;R&notes&quot;"]], ["Bridge", ["&#39;x&#39; AT&T &unknown;"]]]
    (example,) = load(tmp_path, item(context=context, answer="Smith &amp; Sons")).examples
    assert example.prompt.startswith("Brook\nSmith & Sons \"R&notes\"\n\nBridge\n'x' AT&T &unknown;\n\n")
    assert example.answers == ("Smith & Sons",)


def test_blank_paragraphs_are_left_out(tmp_path: Path) -> None:
    (example,) = load(tmp_path, item(context=[*item()["context"], ["Blank", [" ", ""]]])).examples
    assert "Blank" not in example.prompt


def test_one_question_is_one_group_however_it_is_written(tmp_path: Path) -> None:
    again = item(2, question=" who built the bridge, over BROOK 1", context=item()["context"][::-1])
    first, second, third = load(tmp_path, item(1), again, item(3)).examples
    assert first.group == second.group != third.group


def test_questions_in_other_scripts_are_groups_of_their_own(tmp_path: Path) -> None:
    first, second = load(tmp_path, item(1, question="誰が橋を架けたか"), item(2, question="橋はどこか")).examples
    assert first.group != second.group


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("no paragraphs", {"context": []}),
        ("no paragraphs", {"context": None}),
        ("damaged paragraphs", {"context": [["Brook"], ["Bridge", ["x"]]]}),
        ("damaged paragraphs", {"context": [["Brook", None], ["Bridge", ["x"]]]}),
        ("damaged paragraphs", {"context": [["Brook", ["x"]], [7, ["x"]]]}),
        ("no paragraphs", {"context": 3.5}),
        ("supporting paragraph missing", {"context": item()["context"][:2]}),
        ("supporting paragraph missing", {"context": [["Brook", ["x"]], ["Bridge", [" "]]]}),
        ("empty answer", {"answer": " "}),
        ("empty answer", {"answer": "&nbsp;"}),
        ("no answer", {"answer": None}),
        ("question is no text", {"question": 5}),
        ("no question", {"question": None}),
        ("duplicate prompt", {"question": item(1)["question"]}),
        ("duplicate id", {"_id": "5a0001"}),
    ],
)
def test_damaged_items_are_counted_by_reason(tmp_path: Path, reason: str, fields: dict[str, Any]) -> None:
    loaded = load(tmp_path, item(1), item(2, **fields), item(3))
    assert [example.id for example in loaded.examples] == ["5a0001", "5a0003"]
    assert loaded.skipped == {reason: 1}


def test_an_entity_that_is_no_character_stays(tmp_path: Path) -> None:
    question = f"&#{'9' * 5000}; &#xd800; &#9999999999; &amp;?"
    (example,) = load(tmp_path, item(question=question)).examples
    assert f"&#{'9' * 5000}; \ufffd &#9999999999; &?" in example.prompt


def test_integer_and_missing_ids_are_replaced(tmp_path: Path) -> None:
    nameless = item(2)
    del nameless["_id"]
    first, second = load(tmp_path, item(1, _id=0), nameless).examples
    assert len({first.id, second.id, "", "0"}) == 4


def test_items_without_supporting_facts_are_kept(tmp_path: Path) -> None:
    without = item()
    del without["supporting_facts"]
    assert len(load(tmp_path, without).examples) == 1


@pytest.mark.parametrize(("name", "present"), [("train", 300), ("dev_distractor", 150)])
def test_real_samples(real_samples: Path, name: str, present: int) -> None:
    loaded = hotpotqa.load(real_samples / "hotpotqa" / f"{name}.json")
    assert len(loaded.examples) == present
    assert not loaded.skipped
    assert not any("&amp;" in example.prompt or "&quot;" in example.prompt for example in loaded.examples)
