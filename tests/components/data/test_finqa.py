"""FinQA items as published and as damaged mirrors have them."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from components.data import finqa


def item(number: int = 1, page: str = "ACME/2001/page_7.pdf", **qa: Any) -> dict[str, Any]:
    return {
        "pre_text": ["acme sold two kinds of anvils .", "", "amounts are in $ millions ."],
        "post_text": ["heavy anvils sell in winter ."],
        "filename": page,
        "table": [["", "2001", "2000"], ["light anvils", "$ 12", "$ 10"], ["heavy anvils", "30", None]],
        "qa": {"question": f"by how much did light anvils grow, take {number}?", "answer": "20%", "exe_ans": 0.2} | qa,
        "id": f"{page}-{number}",
    }


def load(tmp_path: Path, *items: Any) -> Any:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(items))
    loaded = finqa.load(path)
    assert len(loaded.examples) + loaded.skipped.total() == len(items)
    return loaded


def test_problem_is_text_table_text_and_question(tmp_path: Path) -> None:
    (example,) = load(tmp_path, item()).examples
    assert example.prompt == (
        "acme sold two kinds of anvils . amounts are in $ millions .\n"
        "\n"
        " | 2001 | 2000\n"
        "light anvils | $ 12 | $ 10\n"
        "heavy anvils | 30 | \n"
        "\n"
        "heavy anvils sell in winter .\n"
        "\n"
        "Question: by how much did light anvils grow, take 1?"
    )
    assert example.answers == ("20%",)
    assert (example.id, example.group) == ("ACME/2001/page_7.pdf-1", "ACME/2001/page_7.pdf")


def test_answers_are_cleaned(tmp_path: Path) -> None:
    loaded = load(tmp_path, item(1, answer=" $ 11.50 \\\\n"), item(2, answer="4.9\\n"))
    assert [example.answers for example in loaded.examples] == [("$ 11.50",), ("4.9",)]


@pytest.mark.parametrize(
    ("reason", "damage"),
    [
        ("empty answer", lambda it: it["qa"].update(answer="")),
        ("empty answer", lambda it: it["qa"].update(answer=" \\n")),
        ("no answer", lambda it: it["qa"].pop("answer")),
        ("answer is no text", lambda it: it["qa"].update(answer=0.2)),
        ("empty question", lambda it: it["qa"].update(question="  ")),
        ("no question", lambda it: it["qa"].update(question=None)),
        ("no question", lambda it: it.pop("qa")),
        ("no table", lambda it: it.pop("table")),
        ("no table", lambda it: it.update(table=[])),
        ("no table", lambda it: it.update(table="| a |")),
        ("no table", lambda it: it.update(table=[["a"], []])),
        ("no table", lambda it: it.update(table=[["a"], [["b"]]])),
        ("no pre_text", lambda it: it.pop("pre_text")),
        ("no post_text", lambda it: it.update(post_text=[None])),
        ("text is not UTF-8", lambda it: it["qa"].update(question="\ud800?")),
        ("duplicate prompt", lambda it: it["qa"].update(question=item(1)["qa"]["question"])),
        ("duplicate id", lambda it: it.update(id=item(1)["id"])),
    ],
)
def test_damaged_items_are_counted_by_reason(tmp_path: Path, reason: str, damage: Any) -> None:
    damaged = item(2)
    damage(damaged)
    loaded = load(tmp_path, item(1), damaged, item(3))
    assert [example.id[-1] for example in loaded.examples] == ["1", "3"]
    assert loaded.skipped == {reason: 1}


def test_integer_ids_are_replaced_by_ids_that_do_not_collide_between_files(tmp_path: Path) -> None:
    train = [item(number) | {"id": number} for number in (1, 2)]
    dev = [item(number, "OTHER/2002/page_1.pdf") | {"id": number} for number in (1, 2)]
    examples = load(tmp_path, *train).examples + load(tmp_path, *dev).examples
    assert len({example.id for example in examples}) == 4
    assert load(tmp_path, *train).examples == examples[:2]


def test_page_is_known_without_its_filename(tmp_path: Path) -> None:
    by_id, by_content = item(1), [item(2), item(3)]
    del by_id["filename"]
    for damaged in by_content:
        del damaged["filename"]
        damaged["id"] = 17
    assert load(tmp_path, by_id).examples[0].group == "ACME/2001/page_7.pdf"
    second, third = load(tmp_path, *by_content).examples
    assert second.group == third.group != ""


def test_order_of_keys_does_not_matter(tmp_path: Path) -> None:
    reordered = dict(reversed(deepcopy(item()).items()))
    assert load(tmp_path, reordered).examples == load(tmp_path, item()).examples


@pytest.mark.parametrize(("name", "present", "skipped"), [("train", 100, {}), ("dev", 120, {"empty answer": 1})])
def test_real_samples(real_samples: Path, name: str, present: int, skipped: dict[str, int]) -> None:
    loaded = finqa.load(real_samples / "finqa" / f"{name}.json")
    assert loaded.skipped == skipped
    assert len(loaded.examples) == present - sum(skipped.values())
    assert not any("\\" in example.answers[0] for example in loaded.examples)
    assert len({example.group for example in loaded.examples}) < len(loaded.examples)
