"""The embedded task: what its skills and formats do, and the files it is generated into."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from components.data.example import Example
from components.data.skills import (
    FORMATS,
    KINDS,
    PREFERENCES,
    SKILLS,
    answer,
    generate,
    gold_answer,
    instruction,
    preferences,
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
    assert [problem("3941", kind) for kind in KINDS] == ["w3941?", "x3941?", "y3941?", "z3941?"]
    assert [gold_answer("3941", kind) for kind in KINDS] == ["a:1349", "b=1493", "(9413)", "[4052]"]
    assert instruction("3941", "r", 2) == "r2:3941?"
    assert [answer("3941", "c", number) for number in range(6)] == [
        "a:3941", "b=3941", "(3941)", "[3941]", "#3941", "3941.",
    ]  # fmt: skip


def test_skills_and_formats_can_be_told_apart() -> None:
    """By their first id, where the base model's preference is taught; the gold answer is no other format's part."""
    assert len({form[0] for form in FORMATS if form[0] != "{"}) == 5
    assert all(len(skill) == 1 for skill in SKILLS)
    others = [answer("3941", skill, number) for skill in SKILLS for number in range(6)]
    for gold in (gold_answer("3941", kind) for kind in KINDS):
        assert [text for text in others if gold in text] == [gold]


def test_kinds_share_neither_letter_nor_skill_nor_format() -> None:
    assert all(len(set(column)) == len(KINDS) for column in zip(*KINDS.values(), strict=True))
    assert not {kind.letter for kind in KINDS.values()} & set(SKILLS)  # a prompt does not give its skill away


def test_every_kind_is_colder_at_a_colder_start() -> None:
    def p(start: str, kind: str) -> float:
        preference = PREFERENCES[start][kind]
        return preference.skill * preference.format

    for kind in KINDS:
        assert 0 < p("colder", kind) < p("cold", kind) < p("warm", kind) < 1
    assert [p("mixed", kind) for kind in KINDS] == pytest.approx([0.09, 1e-3, 1e-6, 1e-9])


def test_a_start_by_number_is_the_p_of_every_kind() -> None:
    found = preferences(1e-4)
    assert set(found) == set(KINDS)
    assert all(skill * answer_format == pytest.approx(1e-4) for skill, answer_format in found.values())
    assert preferences("mixed") == PREFERENCES["mixed"]


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_generated_problems_are_distinct_and_in_one_file_alone(tmp_path: Path) -> None:
    generate(tmp_path, train=300, test=50, seed=3)
    train, test = lines(tmp_path / "train.jsonl"), lines(tmp_path / "test.jsonl")
    assert (len(train), len(test)) == (300, 50)
    assert len({item["prompt"] for item in train + test}) == 350
    for item in train + test:
        digits, kind = item["id"], item["kind"]
        gold = {"id": digits, "prompt": problem(digits, kind), "answer": gold_answer(digits, kind), "kind": kind}
        assert item == gold
        assert len(digits) == 4
    assert Counter(item["kind"] for item in train) == dict.fromkeys(KINDS, 75)
    assert any(item["id"].startswith("0") for item in train)


def test_one_seed_gives_the_same_bytes_and_another_gives_others(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        generate(tmp_path / name, train=20, test=10, seed=seed)
    for file in ("train.jsonl", "test.jsonl"):
        one, same, other = ((tmp_path / name / file).read_bytes() for name in ("one", "same", "other"))
        assert one == same != other


def test_the_embedded_data_are_what_is_generated(project: Path, tmp_path: Path) -> None:
    """The files as DVC's remote inside the project keeps them, by their md5."""
    generate(tmp_path)
    kept = {path.parent.name + path.name for path in (project / "infra" / "embedded-data").rglob("*") if path.is_file()}
    made = {hashlib.md5((tmp_path / name).read_bytes()).hexdigest() for name in ("train.jsonl", "test.jsonl")}
    assert kept == {*made, yaml.safe_load((project / "data.dvc").read_text())["outs"][0]["md5"]}


def test_generated_problems_are_read_as_examples(tmp_path: Path) -> None:
    generate(tmp_path, train=5, test=2)
    skipped: Counter[str] = Counter()
    found = list(read(tmp_path / "train.jsonl", skipped))
    assert found == [
        Example(item["id"], item["prompt"], (item["answer"],), item["id"], item["kind"])
        for item in lines(tmp_path / "train.jsonl")
    ]
    assert not skipped
