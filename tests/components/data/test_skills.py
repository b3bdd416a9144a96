"""The embedded task: what its skills and formats do, and the files it is generated into."""

import json
from collections import Counter
from pathlib import Path

import pytest

from components.data.example import Example
from components.data.skills import (
    FORMATS,
    PREFERENCES,
    SKILLS,
    TARGET_FORMAT,
    TARGET_SKILL,
    answer,
    generate,
    instruction,
    problem,
    rationale,
    read,
)


@pytest.mark.parametrize(
    ("skill", "result"),
    [("s", "1349"), ("c", "3941"), ("r", "1493"), ("l", "9413"), ("m", "4139"), ("i", "4052")],
)
def test_skills_do_what_they_are_called(skill: str, result: str) -> None:
    assert SKILLS[skill]("3941") == result
    assert rationale("3941", skill) == f"<think>{skill}{result}</think>"


def test_texts_of_a_problem() -> None:
    assert problem("3941") == "3941?"
    assert answer("3941") == "a:1349"
    assert instruction("3941", "r", 2) == "r2:3941?"
    assert [answer("3941", "c", number) for number in range(6)] == [
        "a:3941", "b=3941", "(3941)", "[3941]", "#3941", "3941.",
    ]  # fmt: skip


def test_skills_and_formats_can_be_told_apart() -> None:
    """By their first id, where the base model's preference is taught; the gold answer is no other format's part."""
    assert len({form[0] for form in FORMATS if form[0] != "{"}) == 5
    assert all(len(skill) == 1 for skill in SKILLS)
    gold = answer("3941")
    others = [answer("3941", skill, number) for skill in SKILLS for number in range(6)]
    assert [text for text in others if gold in text] == [gold]


def test_every_start_prefers_what_is_to_be_learned_less_than_its_share() -> None:
    assert (TARGET_SKILL, FORMATS[TARGET_FORMAT]) == ("s", "a:{}")
    for warmer, colder in (("warm", "cold"), ("cold", "colder")):
        one, other = PREFERENCES[warmer], PREFERENCES[colder]
        assert 0 < other.skill * other.format < one.skill * one.format < 1


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_generated_problems_are_distinct_and_in_one_file_alone(tmp_path: Path) -> None:
    generate(tmp_path, train=300, test=50, seed=3)
    train, test = lines(tmp_path / "train.jsonl"), lines(tmp_path / "test.jsonl")
    assert (len(train), len(test)) == (300, 50)
    assert len({item["prompt"] for item in train + test}) == 350
    for item in train + test:
        assert item == {"id": item["id"], "prompt": f"{item['id']}?", "answer": f"a:{''.join(sorted(item['id']))}"}
        assert len(item["id"]) == 4
    assert any(item["id"].startswith("0") for item in train)


def test_one_seed_gives_the_same_bytes_and_another_gives_others(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        generate(tmp_path / name, train=20, test=10, seed=seed)
    for file in ("train.jsonl", "test.jsonl"):
        one, same, other = ((tmp_path / name / file).read_bytes() for name in ("one", "same", "other"))
        assert one == same != other


def test_the_embedded_data_are_what_is_generated(project: Path, tmp_path: Path) -> None:
    generate(tmp_path)
    for file in ("train.jsonl", "test.jsonl"):
        assert (tmp_path / file).read_bytes() == (project / "data" / "skills" / file).read_bytes()


def test_generated_problems_are_read_as_examples(tmp_path: Path) -> None:
    generate(tmp_path, train=5, test=2)
    skipped: Counter[str] = Counter()
    found = list(read(tmp_path / "train.jsonl", skipped))
    assert found == [
        Example(item["id"], item["prompt"], (item["answer"],), item["id"]) for item in lines(tmp_path / "train.jsonl")
    ]
    assert not skipped
