"""Real files as careless hands leave them: every item is loaded or counted, whatever happened to the file."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from components.data.example import Loaded
from components.data.raw_files import TASKS
from components.data.reading import DUPLICATE_ID, collect

FILES = ["finqa/dev.json", "hotpotqa/dev_distractor.json", "musique/dev.jsonl"]
ID = {"finqa": "id", "hotpotqa": "_id", "musique": "id"}
Item = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    task: str
    items: list[Item]
    path: Path
    whole: Loaded  # what the file has before anything is done to it

    @property
    def lines(self) -> bool:
        return self.path.suffix == ".jsonl"

    def texts(self) -> list[str]:
        return [json.dumps(item, ensure_ascii=False) for item in self.items]

    def load(self, content: str | bytes | list[Item] | list[str]) -> Loaded:
        """Write the file anew, as text, as bytes, or item by item in the form it is published in, and load it."""
        if isinstance(content, list):
            texts = [item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in content]
            content = "".join(f"{text}\n" for text in texts) if self.lines else f"[{', '.join(texts)}]"
        data = content.encode() if isinstance(content, str) else content
        self.path.write_bytes(data)
        return collect(TASKS[self.task].read, self.path)


@pytest.fixture(params=FILES)
def sample(request: pytest.FixtureRequest, real_samples: Path, tmp_path: Path) -> Sample:
    published = real_samples / request.param
    task = published.parent.name
    text = published.read_text(encoding="utf-8")
    items = [json.loads(line) for line in text.splitlines()] if published.suffix == ".jsonl" else json.loads(text)
    return Sample(task, items, tmp_path / published.name, collect(TASKS[task].read, published))


def present(loaded: Loaded) -> int:
    return len(loaded.examples) + loaded.skipped.total()


def third(sample: Sample, damage: Callable[[Item], None]) -> Loaded:
    """Damage every third item."""
    for item in sample.items[::3]:
        damage(item)
    loaded = sample.load(sample.items)
    assert present(loaded) == len(sample.items)
    return loaded


def test_the_sample_itself(sample: Sample) -> None:
    assert present(sample.whole) == len(sample.items)
    assert sample.load(sample.items) == sample.whole


def test_renumbered_ids_lose_nothing(sample: Sample) -> None:
    for number, item in enumerate(sample.items):
        item[ID[sample.task]] = number
    loaded = sample.load(sample.items)
    assert loaded.skipped == sample.whole.skipped
    assert [example.prompt for example in loaded.examples] == [example.prompt for example in sample.whole.examples]
    assert len({example.id for example in loaded.examples}) == len(loaded.examples)


def test_one_id_for_all_keeps_one(sample: Sample) -> None:
    for item in sample.items:
        item[ID[sample.task]] = "the same"
    loaded = sample.load(sample.items)
    assert (len(loaded.examples), present(loaded)) == (1, len(sample.items))
    assert loaded.skipped[DUPLICATE_ID] == len(sample.whole.examples) - 1


def test_empty_and_missing_answers_are_counted(sample: Sample) -> None:
    def empty(item: Item) -> None:
        (item["qa"] if sample.task == "finqa" else item)["answer"] = " \\n"

    loaded = third(sample, empty)
    assert loaded.skipped["empty answer"] >= len(sample.items[::3])

    def lose(item: Item) -> None:
        del (item["qa"] if sample.task == "finqa" else item)["answer"]

    assert third(sample, lose).skipped["no answer"] == len(sample.items[::3])


def test_missing_paragraphs_are_counted(sample: Sample) -> None:
    part = {"finqa": "table", "hotpotqa": "context", "musique": "paragraphs"}[sample.task]
    loaded = third(sample, lambda item: item.update({part: None}))
    assert loaded.skipped.total() >= len(sample.items[::3])

    def lose_support(item: Item) -> None:
        if sample.task == "hotpotqa":
            needed = {title for title, _ in item["supporting_facts"]}
            item["context"] = [entry for entry in item["context"] or () if entry[0] not in needed]
        elif sample.task == "musique":
            item["paragraphs"] = [entry for entry in item["paragraphs"] or () if not entry["is_supporting"]]

    if sample.task != "finqa":
        for item, whole in zip(sample.items, json.loads(json.dumps(sample.items)), strict=True):
            item.update(whole)
        reasons = third(sample, lose_support).skipped
        assert sum(count for reason, count in reasons.items() if "paragraph" in reason) == len(sample.items[::3])


def test_a_file_cut_anywhere_gives_what_is_whole_and_counts_the_cut_item(sample: Sample) -> None:
    texts = sample.texts()
    separator = "\n" if sample.lines else ", "
    content = separator.join(texts)
    content = content if sample.lines else f"[{content}"
    draw = random.Random(0)
    for cut in sorted(draw.sample(range(10, len(content)), 12)):
        begun = complete = 0
        position = 0 if sample.lines else 1
        for text in texts:
            begun += position < cut
            complete += position + len(text) <= cut
            position += len(text) + len(separator)
        loaded = sample.load(content[:cut])
        assert present(loaded) == begun
        assert loaded.skipped["broken JSON"] == begun - complete


def test_a_byte_that_breaks_an_item_costs_that_item(sample: Sample) -> None:
    texts, draw = sample.texts(), random.Random(1)
    broken = sorted(draw.sample(range(len(texts)), 7))
    for number in broken:
        at = texts[number].rindex('": ')
        texts[number] = texts[number][:at] + texts[number][at + 1 :]  # a quotation mark is gone
    loaded = sample.load(texts)
    assert present(loaded) == len(texts)
    assert loaded.skipped["broken JSON"] == 7
    expected = [example for example in sample.whole.examples if example.id not in ids(sample, broken)]
    assert loaded.examples == expected


def ids(sample: Sample, numbers: list[int]) -> set[str]:
    return {sample.items[number][ID[sample.task]] for number in numbers}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_other_unicode_encodings_load_whole(sample: Sample, encoding: str) -> None:
    content = "\n".join(sample.texts()) if sample.lines else f"[{', '.join(sample.texts())}]"
    assert sample.load(content.encode(encoding)) == sample.whole


def test_bytes_that_are_no_unicode_cost_their_items_alone(sample: Sample) -> None:
    for item in sample.items[::5]:
        question = item["qa"] if sample.task == "finqa" else item
        question["question"] += " Zürich?"
    content = "\r\n".join(sample.texts()) if sample.lines else f"[{', '.join(sample.texts())}]"
    plain = [text.isascii() for text in sample.texts()]
    loaded = sample.load(content.encode("latin-1", errors="ignore"))
    assert present(loaded) == len(sample.items)
    skipped = loaded.skipped["text is not UTF-8"]
    assert len(sample.items[::5]) - sample.whole.skipped.total() <= skipped <= plain.count(False)


def test_everything_twice_is_counted_as_repeated(sample: Sample) -> None:
    loaded = sample.load(sample.items + sample.items)
    assert loaded.examples == sample.whole.examples
    assert present(loaded) == 2 * len(sample.items)
