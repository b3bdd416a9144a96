"""Which answers count as right, by the tables below; and every gold answer is right."""

import random
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from components.config import TaskSettings
from components.data import finqa, hotpotqa, musique, raw_files
from components.data.example import Loaded
from components.data.templates import FOLDER
from components.evaluation.answers import NORMALIZED, exact, exact_match, is_correct, normalize, same_value
from tests.conftest import PROJECT

TASKS = ("finqa", "hotpotqa", "musique", "skills", "jsonl")


@pytest.mark.parametrize("task", ["hotpotqa", "musique"])
@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat's\n a Hat!", "cats hat"),
        ("An apple, a day", "apple day"),
        ("U.S.", "us"),
        ("A.", ""),
        ("Theatre", "theatre"),
        ("the-end", "theend"),
        ("1,234.5%", "12345"),
        ("Zoë — “Élan”", "zoë — “élan”"),
        ("İstanbul", "i̇stanbul"),
        ("", ""),
        ("yes.", "yes"),
    ],
)
def test_normal_form_of_names_and_phrases(task: str, text: str, normal: str) -> None:
    assert normalize(text, task) == normal


def test_normal_form_is_its_definition_step_by_step() -> None:
    draw = random.Random(0)
    for _ in range(500):
        text = "".join(
            draw.choices(["a", "the", "AN", "x", " ", " ", "\n", ".", "'", "-", "$", "€", "é", "İ", "0"], k=12)
        )
        steps = "".join(character for character in text.lower() if character not in string.punctuation)
        steps = re.sub(r"\b(?:a|an|the)\b", " ", steps)
        assert normalize(text, "musique") == " ".join(steps.split())


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (" 34.7% ", "34.7%"),
        ("34.7 %", "34.7%"),
        ("34.7", "34.7"),
        ("407.", "407"),
        ("The answer is 407.", "the answer is 407"),
        ("4.9\\n", "4.9"),
        ("4.9\\\\n", "4.9"),
        ("$ 11,736,600.00", "11736600.00"),
        ("$11736600.00 \\n", "11736600.00"),
        ("$ 103.7 million", "103.7 million"),
        ("USD 5", "5"),
        ("€5", "5"),
        ("-$5", "-5"),
        ("$ -5", "-5"),
        ("- 5", "-5"),
        ("−5", "-5"),
        ("a loss of - 5.2%", "a loss of -5.2%"),
        ("10 - 5", "10 - 5"),
        ("+3", "+3"),
        (".33%", ".33%"),
        ("1,2", "1,2"),
        ("12,3456", "12,3456"),
        ("1,234 and 5,678", "1234 and 5678"),
        ("5.0", "5.0"),
        ("Yes", "yes"),
        ("\\n", ""),
    ],
)
def test_normal_form_of_financial_answers(text: str, normal: str) -> None:
    assert normalize(text, "finqa") == normal


@pytest.mark.parametrize("task", ["skills", "jsonl"])
def test_normal_form_of_other_answers(task: str) -> None:
    assert normalize(" A:12 34\n", task) == "a:12 34"
    assert normalize("Straße", task) == normalize("STRASSE", task)
    assert normalize("The end.", task) == "the end."


@pytest.mark.parametrize("task", TASKS)
def test_a_normal_form_stays_as_it_is(task: str) -> None:
    for text in ("The 34.7 %", "- $ 5,000.", "a:1234", "U.S.", "1 - 2", "İ ß"):
        assert normalize(normalize(text, task), task) == normalize(text, task)


# task, sampled answer, accepted answers, right by substring, right by equality
SCORED = [
    ("finqa", "34.7%", ("34.7%",), True, True),
    ("finqa", "about 34.7 %", ("34.7%",), True, False),
    ("finqa", "34.7", ("34.7%",), False, False),
    ("finqa", "34.7%", ("34.7",), True, False),
    ("finqa", "0.347", ("34.7%",), False, False),
    ("finqa", "2.4", ("-2.4",), False, False),
    ("finqa", "−2.4", ("-2.4",), True, True),
    ("finqa", "-2.4", ("2.4",), True, False),
    ("finqa", "$11,736,600.00", ("$ 11736600.00",), True, True),
    ("finqa", "$ 11736600.00 \\n", ("$ 11736600.00",), True, True),
    ("finqa", "103.7", ("$ 103.7 million",), False, False),
    ("finqa", "Yes.", ("yes",), True, True),
    ("finqa", "no", ("yes",), False, False),
    ("finqa", "", ("yes",), False, False),
    ("hotpotqa", "It was the Beatles!", ("Beatles",), True, False),
    ("hotpotqa", "beatles", ("The Beatles",), True, True),
    ("hotpotqa", "No.", ("no",), True, True),
    ("hotpotqa", "unknown", ("no",), True, False),
    ("hotpotqa", "yes", ("no",), False, False),
    ("hotpotqa", "Melanie", ("Mélanie",), False, False),
    ("hotpotqa", "15416", ("15,416",), True, True),
    ("hotpotqa", "The band The The", ("The The",), False, False),
    ("hotpotqa", "the the", ("The The",), True, True),
    ("hotpotqa", "?", ("!",), False, False),
    ("musique", "Big Apple", ("New York", "the Big Apple"), True, True),
    ("musique", "in the Big Apple", ("New York", "the Big Apple"), True, False),
    ("musique", "York", ("New York", "Big Apple"), False, False),
    ("musique", "323–272 bc", ("323–272 BC",), True, True),
    ("skills", "a:1234", ("a:1234",), True, True),
    ("skills", "A:1234 ", ("a:1234",), True, True),
    ("skills", "a:12345", ("a:1234",), True, False),
    ("skills", "b=1234", ("a:1234",), False, False),
    ("jsonl", "The end.", ("end",), True, False),
    ("jsonl", "end", ("the end",), False, False),
]


@pytest.mark.parametrize(("task", "sampled", "answers", "by_substring", "by_equality"), SCORED)
def test_scores(task: str, sampled: str, answers: tuple[str, ...], by_substring: bool, by_equality: bool) -> None:
    assert is_correct(sampled, answers, task) == by_substring
    assert exact(sampled, answers, task) == by_equality


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("gold", ["", " ", "\n"])
@pytest.mark.parametrize("sampled", ["", " ", "anything"])
def test_an_empty_gold_answer_matches_nothing(task: str, gold: str, sampled: str) -> None:
    assert not is_correct(sampled, (gold,), task)
    assert not exact(sampled, (gold,), task)
    assert not exact_match(sampled, (gold,))


@pytest.mark.parametrize("task", TASKS)
def test_a_gold_answer_that_normalisation_empties_does_not_match_everything(task: str) -> None:
    for gold in ("The", "a", "...", "\\n"):
        assert is_correct(gold, (gold,), task)
        assert exact(gold, (gold,), task)
        assert not is_correct("some other words", (gold,), "hotpotqa")


@pytest.mark.parametrize(
    ("sampled", "right"),
    [("a:12", True), (" a:12\n", True), ("A:12", False), ("a:12.", False), ("b:12", False), ("", False)],
)
def test_training_reward_is_the_target_itself(sampled: str, right: bool) -> None:
    assert exact_match(sampled, ("a:12", "b:12")) == right


@pytest.mark.parametrize(
    ("sampled", "gold", "same"),
    [
        ("34.7%", "34.7%", True),
        ("0.347", "34.7%", True),
        ("34.72 percent", "34.7%", True),
        ("34.76%", "34.7%", False),
        ("34.7", "34.7%", False),
        ("-34.7%", "34.7%", False),
        ("407.3", "407", True),
        ("407.6", "407", False),
        ("1,300", "1300", True),
        ("5.0", "5", True),
        (".33%", "0.33%", True),
        ("$ 103.7 million", "103700000", True),
        ("103.7", "$ 103.7 million", False),
        ("103.72 million", "$ 103.7 million", True),
        ("the answer is 5", "5", False),
        ("5 or 6", "5", False),
        ("Yes", "yes", True),
        ("1", "yes", False),
        ("", "5", False),
        ("5", "", False),
        ("9" * 400, "5", False),
        ("1" * 1_100_000, "1", False),
        ("0." + "1" * 1_100_000, "0.1", False),
        ("x" + " " * 200_000 + "x", "x x", True),  # an hour, if each blank began a search of its own
        ("." * 200_000 + "x", "x", False),
    ],
)
def test_same_value(sampled: str, gold: str, same: bool) -> None:
    assert same_value(sampled, (gold,)) == same


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="'other'"):
        normalize("x", "other")


@pytest.mark.parametrize(
    ("task", "load", "names"),
    [
        ("finqa", finqa.load, ("train.json", "dev.json")),
        ("hotpotqa", hotpotqa.load, ("train.json", "dev_distractor.json")),
        ("musique", musique.load, ("train.jsonl", "dev.jsonl")),
    ],
)
def test_every_gold_answer_and_alias_of_the_real_samples_is_right(
    real_samples: Path, task: str, load: Callable[[Path], Loaded], names: tuple[str, ...]
) -> None:
    examples = [example for name in names for example in load(real_samples / task / name).examples]
    assert examples
    for example in examples:
        assert exact_match(example.answers[0], example.answers)
        assert all(is_correct(answer, example.answers, task) for answer in example.answers)
        assert all(exact(answer, example.answers, task) for answer in example.answers)
        assert task != "finqa" or same_value(example.answers[0], example.answers)
        assert not is_correct("", example.answers, task)


def test_every_data_set_is_named_read_normalised_and_prompted() -> None:
    named = get_args(TaskSettings.model_fields["name"].annotation)
    assert set(named) == set(raw_files.TASKS) == set(NORMALIZED)
    templates = {path.name.removesuffix("-warm.txt") for path in FOLDER.glob("*-warm.txt")}
    assert templates == set(named) - {"skills"}  # which has the same prompts in every start


# The table that users read

README = PROJECT / "components/evaluation/README.md"
TABLE = [
    [cell.strip() for cell in line.strip().strip("|").split("|")]
    for line in README.read_text(encoding="utf-8").splitlines()
    if re.match(rf"\| ({'|'.join(TASKS)}) \|", line)
]


def test_the_documented_table_has_rows_of_every_published_task() -> None:
    assert {row[0] for row in TABLE} >= {"finqa", "hotpotqa", "musique", "jsonl"}
    assert len(TABLE) >= 35


@pytest.mark.parametrize("row", TABLE, ids=" ".join)
def test_answers_are_scored_as_the_documentation_says(row: list[str]) -> None:
    task, gold, sample, *said = row
    answers = [text.strip("`") for text in gold.split(" or ")]
    sampled = sample.strip("`")
    found = [is_correct(sampled, answers, task), exact(sampled, answers, task)]
    found += [same_value(sampled, answers) if task == "finqa" else None, exact_match(sampled, answers)]
    assert [{True: "yes", False: "no", None: ""}[right] for right in found] == said
