"""From raw files to splits: which examples go where, what is written, and what it costs."""

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from components.config import TaskSettings, load_settings
from components.data import prepare as preparing
from components.data.example import Example
from components.data.skills import KINDS, generate
from components.data.split_files import example, load_split
from components.data.splits import SPLITS
from components.errors import UserError
from tests.conftest import PROJECT, TOKENIZERS


def settings(name: str, path: Path, **others: Any) -> TaskSettings:
    fields = {"start": "cold", "train": None, "validation": None, "test": None, "seed": 0} | others
    fields = {"kinds": None, "label_noise": 0.0, "max_prompt_tokens": None, "long_prompts": "shorten"} | fields
    return TaskSettings.model_validate({"name": name, "path": str(path), **fields})


class Words:
    """A token a word; the model's context is 10,000 of them."""

    context = 10_000

    def prompts(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def at_most(self, prompt: str) -> int:
        return len(prompt)

    answers = prompts


def prepare(settings: TaskSettings, out: Path) -> dict[str, Any]:
    return preparing.prepare(settings, out, Words(), budget=100)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows(first: int, last: int, **others: Any) -> list[dict[str, Any]]:
    return [{"id": f"i{n}", "prompt": f"question {n}", "answer": f"{n}"} | others for n in range(first, last)]


def examples(out: Path, split: str) -> list[Example]:
    return [example(row) for row in load_split(out, split).to_list()]


def ids(out: Path, split: str) -> set[str]:
    return {example.id for example in examples(out, split)}


def finqa_item(page: int, number: int) -> dict[str, Any]:
    return {
        "pre_text": [f"page {page} ."],
        "post_text": ["the end ."],
        "filename": f"page_{page}.pdf",
        "table": [["x", "1"]],
        "qa": {"question": f"what is {number}?", "answer": str(number)},
        "id": f"page_{page}.pdf-{number}",
    }


def test_published_splits_are_kept_as_they_are(tmp_path: Path) -> None:
    for name, first in (("train", 0), ("validation", 100), ("test", 200)):
        write_lines(tmp_path / f"{name}.jsonl", rows(first, first + 30))
    report = prepare(settings("jsonl", tmp_path), tmp_path / "out")
    for name, first in (("train", 0), ("validation", 100), ("test", 200)):
        assert examples(tmp_path / "out", name) == [
            Example(f"i{n}", f"question {n}", (str(n),), f"i{n}") for n in range(first, first + 30)
        ]
    assert report == json.loads((tmp_path / "out/report.json").read_text())
    assert report["validation"] == {
        "file": "validation.jsonl",
        "present": 30,
        "loaded": 30,
        "skipped": {},
        "duplicates": 0,
        "taken": 30,
        "shared": {},
        "max_prompt_tokens": 9900,
        "too_long": 0,
        "final": 30,
        "shortened": 0,
        "wrong_labels": 0,
        "prompts_counted": 30,
        "prompt_tokens": {"min": 2, "median": 2, "p95": 2, "max": 2},
        "answer_tokens": {"min": 1, "median": 1, "p95": 1, "max": 1},
    }


def test_missing_validation_is_carved_from_training(tmp_path: Path) -> None:
    generate(tmp_path, train=300, test=20)
    report = prepare(settings("skills", tmp_path, validation=50), tmp_path / "out")
    assert [report[name]["final"] for name in SPLITS] == [250, 50, 20]
    assert not ids(tmp_path / "out", "train") & ids(tmp_path / "out", "validation")
    report = prepare(settings("skills", tmp_path), tmp_path / "out")
    assert [report[name]["final"] for name in SPLITS] == [270, 30, 20]


def test_missing_test_is_half_of_dev_and_pages_stay_whole(tmp_path: Path) -> None:
    dev = [finqa_item(page, number) for page in range(40) for number in range(3)]
    (tmp_path / "train.json").write_text(json.dumps([finqa_item(page, 0) for page in range(100, 110)]))
    (tmp_path / "dev.json").write_text(json.dumps(dev))
    report = prepare(settings("finqa", tmp_path), tmp_path / "out")
    assert (report["validation"]["final"], report["test"]["final"]) == (60, 60)
    pages = [{example.group for example in examples(tmp_path / "out", split)} for split in ("validation", "test")]
    assert not pages[0] & pages[1]
    assert len(pages[0] | pages[1]) == 40


def test_training_gives_way_to_whatever_test_and_validation_share_with_it(tmp_path: Path) -> None:
    train = [
        *rows(0, 6),
        {"id": "i101", "prompt": "another text", "answer": "x"},
        {"id": "other", "prompt": "question 102", "answer": "x"},
        {"id": "one", "prompt": "one more", "answer": "x", "group": "page"},
        {"id": "seen", "prompt": "question 200", "answer": "x"},
    ]
    write_lines(tmp_path / "train.jsonl", train)
    write_lines(tmp_path / "validation.jsonl", [*rows(200, 203), *rows(103, 104)])
    write_lines(tmp_path / "test.jsonl", [*rows(101, 104), {"prompt": "two", "answer": "y", "group": "page"}])
    report = prepare(settings("jsonl", tmp_path), tmp_path / "out")
    assert ids(tmp_path / "out", "train") == {f"i{n}" for n in range(6)}
    assert ids(tmp_path / "out", "validation") == {"i200", "i201", "i202"}
    assert report["train"]["shared"] == {"group": 1, "id": 1, "prompt": 2}
    assert report["validation"]["shared"] == {"prompt": 1}
    for name in SPLITS:
        split = report[name]
        assert split["present"] == split["loaded"] + split["duplicates"] + sum(split["skipped"].values())
        assert split["final"] == split["taken"] - sum(split["shared"].values())


def test_an_item_outside_the_test_limit_is_still_no_training_item(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", rows(0, 40))
    write_lines(tmp_path / "test.jsonl", rows(20, 60))
    prepare(settings("jsonl", tmp_path, test=1), tmp_path / "out")
    assert not ids(tmp_path / "out", "train") & {f"i{n}" for n in range(20, 60)}


def test_damage_and_repetition_are_reported(tmp_path: Path) -> None:
    items: list[Any] = [finqa_item(page, 0) for page in range(8)]
    items += [items[0], 7, finqa_item(20, 0) | {"table": []}]
    (tmp_path / "train.json").write_text(json.dumps(items)[:-1] + ', {"pre_text": ["cut')
    (tmp_path / "dev.json").write_text(json.dumps([finqa_item(page, 0) for page in range(30, 34)]))
    report = prepare(settings("finqa", tmp_path), tmp_path / "out")["train"]
    assert (report["present"], report["loaded"], report["duplicates"], report["final"]) == (12, 8, 1, 8)
    assert report["skipped"] == {"broken JSON": 1, "no JSON object": 1, "no table": 1}


def test_other_kinds_than_those_that_are_set_are_left_out_and_counted(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", [*rows(0, 40, kind="a"), *rows(40, 60, kind="b"), *rows(60, 70)])
    write_lines(tmp_path / "test.jsonl", rows(100, 104, kind="a") + rows(104, 107, kind="b"))
    report = prepare(settings("jsonl", tmp_path, kinds=["a"]), tmp_path / "out")
    assert report["test"]["skipped"] == {"of another kind": 3}
    assert report["train"]["skipped"] == {"of another kind": 30}
    kept = [item.kind for split in ("train", "validation", "test") for item in examples(tmp_path / "out", split)]
    assert set(kept) == {"a"}
    others = settings("jsonl", tmp_path, kinds=["b"])
    assert len(preparing.load_file(tmp_path / "test.jsonl", others, Words(), 100).examples) == 3
    with pytest.raises(UserError, match="of another kind"):
        prepare(settings("jsonl", tmp_path, kinds=["c"]), tmp_path / "none")


def test_limits_keep_a_seeded_choice_in_the_order_of_the_file(tmp_path: Path) -> None:
    generate(tmp_path, train=200, test=100)
    chosen = {}
    for seed, limit in ((0, 20), (0, 40), (1, 20)):
        prepare(settings("skills", tmp_path, train=limit, validation=10, test=5, seed=seed), tmp_path / "out")
        assert [len(ids(tmp_path / "out", name)) for name in SPLITS] == [limit, 10, 5]
        chosen[seed, limit] = ids(tmp_path / "out", "train")
    assert chosen[0, 20] < chosen[0, 40]
    assert chosen[0, 20] != chosen[1, 20]
    order = [json.loads(line)["id"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    written = [example.id for example in examples(tmp_path / "out", "train")]
    assert written == sorted(written, key=order.index)


def test_the_split_does_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    found = []
    for order in (1, -1):
        write_lines(tmp_path / "train.jsonl", rows(0, 100)[::order])
        write_lines(tmp_path / "test.jsonl", rows(100, 110))
        prepare(settings("jsonl", tmp_path, train=20), tmp_path / "out")
        found.append((ids(tmp_path / "out", "train"), ids(tmp_path / "out", "validation")))
    assert found[0] == found[1]


def test_bytes_are_the_same_every_time(tmp_path: Path) -> None:
    generate(tmp_path, train=700, test=20)
    for out in ("one", "two", "two"):
        prepare(settings("skills", tmp_path, seed=5), tmp_path / out)
    names = {"train.arrow", "validation.arrow", "test.arrow", "report.json"}
    assert {path.name for path in (tmp_path / "two").iterdir()} == names
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)


def test_rows_are_memory_mapped_with_these_columns(tmp_path: Path) -> None:
    generate(tmp_path, train=600, test=20)
    prepare(settings("skills", tmp_path), tmp_path / "out")
    split = load_split(tmp_path / "out", "train")
    assert split.column_names == ["id", "prompt", "answers", "group", "kind"]
    assert [Path(file["filename"]) for file in split.cache_files] == [tmp_path / "out/train.arrow"]


def test_warm_prompts_hold_the_cold_ones(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(json.dumps([finqa_item(page, 0) for page in range(5)]))
    (tmp_path / "dev.json").write_text(json.dumps([finqa_item(page, 0) for page in range(10, 14)]))
    prepare(settings("finqa", tmp_path), tmp_path / "cold")
    prepare(settings("finqa", tmp_path, start="warm"), tmp_path / "warm")
    for cold, warm in zip(examples(tmp_path / "cold", "train"), examples(tmp_path / "warm", "train"), strict=True):
        assert warm.prompt.endswith("\n\n" + cold.prompt)
        assert (warm.id, warm.answers, warm.group) == (cold.id, cold.answers, cold.group)


@pytest.mark.parametrize("start", ["mixed", "cold", "warm", "colder"])
def test_the_embedded_task_has_the_same_prompts_in_every_start(tmp_path: Path, start: str) -> None:
    generate(tmp_path, train=20, test=20)
    prepare(settings("skills", tmp_path, start=start), tmp_path / "out")
    found = examples(tmp_path / "out", "train")
    assert all(len(example.prompt) == len("w3142?") for example in found)
    assert {example.kind for example in found} == set(KINDS)


def test_long_prompts_are_shortened_or_left_out_and_counted(tmp_path: Path) -> None:
    """Prompts of 205 words with two supporting paragraphs of 21; the limit has room for these and some others."""
    for name, seed in (("train.json", 1), ("dev_distractor.json", 2)):
        (tmp_path / name).write_text(json.dumps([paragraphs(seed, number) for number in range(6)]))
    found = {}
    for policy, most in (("shorten", 130), ("drop", 300)):
        wanted = settings("hotpotqa", tmp_path, max_prompt_tokens=most, long_prompts=policy)
        found[policy] = prepare(wanted, tmp_path / f"{policy}{most}")["train"]
        assert found[policy]["max_prompt_tokens"] == most
    for policy, most in (("shorten", 40), ("drop", 130)):
        with pytest.raises(UserError, match=f"every prompt of the train split has more than {most} tokens"):
            prepare(settings("hotpotqa", tmp_path, max_prompt_tokens=most, long_prompts=policy), tmp_path / "none")
        assert not (tmp_path / "none" / "train.arrow").exists()
    assert (found["shorten"]["shortened"], found["shorten"]["too_long"], found["shorten"]["final"]) == (6, 0, 6)
    assert (found["drop"]["shortened"], found["drop"]["too_long"], found["drop"]["final"]) == (0, 0, 6)
    assert found["shorten"]["prompt_tokens"]["max"] <= 130 < found["drop"]["prompt_tokens"]["min"]
    for short, whole in zip(
        examples(tmp_path / "shorten130", "train"), examples(tmp_path / "drop300", "train"), strict=True
    ):
        kept, before = short.prompt.split("\n\n"), whole.prompt.split("\n\n")
        assert [text for text in before if text in kept] == kept  # in the old order
        assert {text.split()[0] for text in kept} >= {"Needed-1", "Needed-7", "Question:"}
        gone = [len(text.split()) for text in before if text not in kept]
        assert min(gone) >= max(len(text.split()) for text in kept if text.startswith("Other"))
        assert len(short.prompt.split()) + min(gone) > 130  # one more would not have fitted
        assert (short.id, short.answers, short.group) == (whole.id, whole.answers, whole.group)


def paragraphs(seed: int, number: int) -> dict[str, Any]:
    """A HotPotQA item: ten paragraphs of 18 to 22 words, of which two are needed."""
    titles = [f"{'Needed' if k in (1, 7) else 'Other'}-{k}" for k in range(10)]
    context = [[title, [" ".join([f"w{seed}{number}{k}"] * (17 + k % 5))]] for k, title in enumerate(titles)]
    facts = [["Needed-1", 0], ["Needed-7", 0]]
    question = f"what of {seed} {number} ?"
    return {
        "_id": f"{seed}-{number}",
        "question": question,
        "answer": "x",
        "context": context,
        "supporting_facts": facts,
    }


def test_where_no_paragraph_is_known_to_be_needless_a_long_prompt_is_left_out(tmp_path: Path) -> None:
    train = [paragraphs(1, number) for number in range(4)]
    for item in train[:2]:
        del item["supporting_facts"]
    (tmp_path / "train.json").write_text(json.dumps(train))
    (tmp_path / "dev_distractor.json").write_text(json.dumps([paragraphs(2, number) for number in range(4)]))
    report = prepare(settings("hotpotqa", tmp_path, max_prompt_tokens=130), tmp_path / "out")["train"]
    assert (report["too_long"], report["shortened"], report["final"], report["taken"]) == (2, 2, 2, 4)
    assert ids(tmp_path / "out", "train") == {"1-2", "1-3"}


def test_the_context_limits_prompts_too(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", [*rows(0, 6), {"prompt": "word " * 51, "answer": "x"}])
    write_lines(tmp_path / "test.jsonl", rows(10, 14))
    wanted = settings("jsonl", tmp_path, validation=1)
    report = preparing.prepare(wanted, tmp_path / "out", Words(), budget=Words.context - 50)
    assert report["train"]["max_prompt_tokens"] == 50
    assert report["train"]["too_long"] + report["validation"]["too_long"] == 1
    with pytest.raises(UserError, match="max_new_tokens = 10000 leaves nothing of the model's context of 10000"):
        preparing.prepare(wanted, tmp_path / "out", Words(), budget=Words.context)


def test_wrong_labels_are_in_the_training_split_alone_and_counted(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", [row | {"aliases": ["also"]} for row in rows(0, 40)])
    write_lines(tmp_path / "validation.jsonl", rows(100, 120))
    write_lines(tmp_path / "test.jsonl", rows(200, 220))
    labels = {}
    for share, seed in ((0.0, 0), (0.25, 0), (0.25, 1)):
        wanted = settings("jsonl", tmp_path, label_noise=share, seed=seed)
        report = prepare(wanted, tmp_path / "out")
        assert [report[name]["wrong_labels"] for name in SPLITS] == [40 * share, 0, 0]
        labels[share, seed] = {item.id: item.answers for name in SPLITS for item in examples(tmp_path / "out", name)}
    right = labels[0.0, 0]
    for seed in (0, 1):
        noisy = {name: answers for name, answers in labels[0.25, seed].items() if answers != right[name]}
        assert len(noisy) == 10
        assert noisy.keys() <= {f"i{n}" for n in range(40)}
        assert all(len(answers) == 1 and (*answers, "also") in right.values() for answers in noisy.values())
    assert labels[0.25, 0] != labels[0.25, 1]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ([], "has no training file; put train.json or hotpot_train_v1.1.json there"),
        (["train.json"], "has nothing to test on; put dev_distractor.json or hotpot_dev_distractor_v1.json there"),
        (["train.json", "hotpot_train_v1.1.json"], "has train.json and hotpot_train_v1.1.json; keep the one to use"),
        (["train.json", "dev_distractor.json"], "nothing of .*train.json is left for the train split: 0 items"),
    ],
)
def test_missing_doubled_and_empty_files_are_one_sentence(tmp_path: Path, files: list[str], sentence: str) -> None:
    for file in files:
        (tmp_path / file).write_text("[]")
    with pytest.raises(UserError, match=sentence):
        prepare(settings("hotpotqa", tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_folder_or_split_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"no folder .*nowhere; set task.path to the one that holds train.json, or .*`thaw data fetch finqa`",
    ):
        prepare(settings("finqa", tmp_path / "nowhere"), tmp_path / "out")
    with pytest.raises(UserError, match=r"no .*train\.arrow; prepare the data first"):
        load_split(tmp_path, "train")


@pytest.mark.parametrize(("task", "loaded"), [("finqa", 219), ("hotpotqa", 450), ("musique", 180)])
@pytest.mark.parametrize("start", ["cold", "warm"])
def test_real_samples(real_samples: Path, tmp_path: Path, task: str, loaded: int, start: str) -> None:
    report = prepare(settings(task, real_samples / task, start=start), tmp_path)
    assert sum(report[name]["final"] for name in SPLITS) == loaded
    keys = [{key for row in examples(tmp_path, name) for key in (row.id, row.group, row.prompt)} for name in SPLITS]
    assert not keys[0] & (keys[1] | keys[2])
    assert not keys[1] & keys[2]


@pytest.mark.parametrize("task", ["finqa", "hotpotqa", "musique"])
@pytest.mark.parametrize("start", ["cold", "warm"])
def test_no_real_question_or_page_is_in_two_splits_even_where_the_files_repeat_each_other(
    real_samples: Path, tmp_path: Path, task: str, start: str
) -> None:
    """Half of the dev file is put into the training file, under other ids, and for FinQA under other questions too."""
    names = {"finqa": ("train.json", "dev.json"), "hotpotqa": ("train.json", "dev_distractor.json")}
    train_name, dev_name = names.get(task, ("train.jsonl", "dev.jsonl"))
    files = {name: read_items(real_samples / task / name) for name in (train_name, dev_name)}
    leaked = json.loads(json.dumps(files[dev_name][::2]))
    for number, item in enumerate(leaked):
        item["_id" if task == "hotpotqa" else "id"] = number
        if task == "finqa":
            item["qa"]["question"] += f" ({number})"
        else:
            item["question"] = item["question"].upper()
    for name, items in ((train_name, files[train_name] + leaked), (dev_name, files[dev_name])):
        text = "\n".join(map(json.dumps, items)) if name.endswith("l") else json.dumps(items)
        (tmp_path / name).write_text(text)
    report = prepare(settings(task, tmp_path, start=start), tmp_path / "out")
    assert sum(report["train"]["shared"].values()) >= len(leaked) - 1  # one FinQA item has an empty answer
    splits = {name: examples(tmp_path / "out", name) for name in SPLITS}
    assert all(splits.values())
    for find in (lambda item: item.id, lambda item: item.group, question, page if task == "finqa" else question):
        found = [{find(item) for item in splits[name]} for name in SPLITS]
        assert not found[2] & (found[0] | found[1])
        assert not found[1] & found[0]


def read_items(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def question(item: Example) -> str:
    """The question as it was asked; FinQA's with its page, since "what was the change?" is asked of many."""
    asked = item.prompt.rpartition("\nQuestion: ")[2].casefold()
    return asked + (page(item) if "|" in item.prompt and item.group.endswith(".pdf") else "")


def page(item: Example) -> str:
    """Everything of a prompt before its question."""
    return item.prompt.rpartition("\nQuestion: ")[0]


def hotpotqa_file(path: Path, count: int, seed: int) -> None:
    """Items of HotPotQA's usual size: ten paragraphs, 900 words, 6 kB."""
    draw = random.Random(seed)
    words = [f"{draw.getrandbits(28):07x}"[: draw.randint(2, 7)] for _ in range(5000)]
    with path.open("w") as file:
        for number in range(count):
            sentences = [" ".join(draw.choices(words, k=22)) + "." for _ in range(40)]
            context = [[f"Title {k}", sentences[4 * k : 4 * k + 4]] for k in range(10)]
            item = {
                "_id": f"{seed}-{number:06d}",
                "answer": words[number % 5000],
                "question": f"Question {seed} {number} {sentences[0]}",
                "supporting_facts": [["Title 1", 0], ["Title 7", 2]],
                "context": context,
            }
            file.write(("[" if number == 0 else ", ") + json.dumps(item))
        file.write("]")


def test_ten_thousand_examples_take_seconds_and_little_memory(tmp_path: Path) -> None:
    hotpotqa_file(tmp_path / "train.json", 10_000, seed=1)
    hotpotqa_file(tmp_path / "dev_distractor.json", 300, seed=2)
    program = (
        "import json, sys, time; from pathlib import Path;"
        "begun = time.monotonic();"
        "from components.config import Settings; from tasks.inputs import make_data;"
        "report = make_data(Settings.model_validate_json(sys.argv[1]), Path(sys.argv[2]));"
        # Not getrusage's figure, which begins at what the parent process holds.
        "peak = int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) / 1024;"
        "print(json.dumps([report['train']['final'], time.monotonic() - begun, peak]))"
    )
    overrides = ["task.name=hotpotqa", f"task.path={tmp_path}", "task.start=warm"]
    overrides += ["task.train=null", "task.validation=null", "task.test=null"]
    overrides += [f"model.name={TOKENIZERS}/qwen3"] if TOKENIZERS else []
    wanted = load_settings(PROJECT / "params.yaml", overrides).model_dump_json()
    command = [sys.executable, "-c", program, wanted, str(tmp_path / "out")]
    final, seconds, megabytes = json.loads(subprocess.run(command, cwd=PROJECT, check=True, capture_output=True).stdout)
    print(f"10,000 examples: {seconds:.1f} s, {megabytes:.0f} MB at most")
    assert final == 10_000
    assert megabytes < 500
