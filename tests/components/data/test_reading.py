"""Damaged files: what is whole is read, the rest is counted, memory stays small."""

import json
import random
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from components.data import reading
from components.data.example import Example
from components.data.reading import Damaged, build_examples, clean_answer, distinct, json_array, json_lines, open_text
from components.errors import UserError

ITEMS: list[dict[str, Any]] = [
    {"_id": "a", "text": 'quotes " and ] brackets }, {', "nested": [{"op": "x", "more": {"deep": []}}]},
    {"_id": "b", "text": "Ünïcödé ✓ 𝕏", "number": -1.5e-3, "none": None},
    {"_id": "c", "text": "plain\\", "list": [[1, 2], ["x"]]},
]


def read_array(path: Path) -> tuple[list[Any], Counter[str]]:
    skipped: Counter[str] = Counter()
    return list(json_array(path, skipped)), skipped


def read_lines(path: Path) -> tuple[list[Any], Counter[str]]:
    skipped: Counter[str] = Counter()
    return list(json_lines(path, skipped)), skipped


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.json"


@pytest.mark.parametrize("indent", [None, 1, 4])
@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
def test_array_is_read_whatever_its_layout_and_the_chunk_size(
    path: Path, monkeypatch: pytest.MonkeyPatch, indent: int | None, chunk: int
) -> None:
    monkeypatch.setattr(reading, "CHUNK", chunk)
    path.write_text("  " * (chunk > 1) + json.dumps(ITEMS, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert read_array(path) == (ITEMS, Counter())


def test_array_cut_anywhere_gives_every_complete_item_and_counts_the_cut_one(path: Path) -> None:
    whole = json.dumps(ITEMS)
    ends = [whole.index(json.dumps(item)) + len(json.dumps(item)) for item in ITEMS]
    starts = [whole.index(json.dumps(item)) for item in ITEMS]
    for cut in range(1, len(whole)):
        path.write_text(whole[:cut])
        complete = sum(end <= cut for end in ends)
        begun = sum(start < cut for start in starts)
        items, skipped = read_array(path)
        assert items == ITEMS[:complete]
        assert skipped.total() == begun - complete


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],  # cut, and the next item follows
        lambda text: text.replace('"text": "', '"text": ', 1),  # a quote is missing
        lambda text: text[:-1],  # a brace is missing
        lambda text: text.replace('"text"', '"te\nxt"', 1),  # a raw line end inside a string
    ],
)
@pytest.mark.parametrize("broken", [0, 1])
def test_damage_in_the_middle_costs_one_item_and_is_counted(path: Path, damage: Any, broken: int) -> None:
    texts = [json.dumps(item) for item in ITEMS]
    texts[broken] = damage(texts[broken])
    path.write_text("[" + ", ".join(texts) + "]")
    items, skipped = read_array(path)
    assert items == ITEMS[:broken] + ITEMS[broken + 1 :]
    assert skipped == {"broken JSON": 1}


def test_a_comma_that_is_missing_costs_nothing(path: Path) -> None:
    path.write_text("[" + "\n".join(map(json.dumps, ITEMS)) + "]")
    assert read_array(path) == (ITEMS, Counter())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_unicode_encodings_are_recognised(path: Path, encoding: str) -> None:
    path.write_text(json.dumps(ITEMS, ensure_ascii=False), encoding=encoding)
    assert read_array(path) == (ITEMS, Counter())


def test_latin_1_is_read_and_refused_item_by_item(path: Path) -> None:
    path.write_text('[{"p": "plain"}, {"p": "Zürich"}, {"p": "half a pair \\ud800"}]', encoding="latin-1")
    skipped: Counter[str] = Counter()
    examples = build_examples(json_array(path, skipped), lambda item: Example("", item["p"], (), ""), skipped)
    assert [example.prompt for example in examples] == ["plain"]
    assert skipped == {"text is not UTF-8": 2}


@pytest.mark.parametrize(
    "content", ["", "   ", "<html>Not found</html>", '{"data": []}', "version https://git-lfs", "\x1f\x8b\0"]
)
def test_no_array_at_all_is_one_sentence_naming_the_file(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(UserError, match=r"file\.json is no JSON array.*download it again"):
        read_array(path)


@pytest.mark.parametrize("content", ["", "\n\n", "<html>\nNot found\n</html>", "[\n1\n]"])
def test_no_lines_at_all_is_one_sentence_naming_the_file(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(UserError, match=r"file\.json holds no JSON Lines.*download it again"):
        read_lines(path)


def test_missing_file_and_folder_are_one_sentence(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match=f"cannot read {path}: .*; check"):
            open_text(path)


def test_broken_and_blank_lines(path: Path) -> None:
    lines = [json.dumps(ITEMS[0]), "", "{broken", json.dumps(ITEMS[1]), "null", json.dumps(ITEMS[2])[:-9]]
    path.write_text("\r\n".join(lines))
    assert read_lines(path) == ([ITEMS[0], ITEMS[1], None], Counter({"broken JSON": 2}))


def test_nesting_without_end_is_damage_and_no_crash(path: Path) -> None:
    deep = '{"_id": ' + "[" * 200_000
    path.write_text(f"[{json.dumps(ITEMS[0])}, {deep}, {json.dumps(ITEMS[1])}]")
    assert read_array(path) == (ITEMS[:2], Counter({"broken JSON": 1}))
    path.write_text(f"{json.dumps(ITEMS[0])}\n{deep}\n")
    assert read_lines(path) == (ITEMS[:1], Counter({"broken JSON": 1}))


def test_lines_without_end_are_counted_before_they_fill_the_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LONGEST", 1 << 20)
    with path.open("w") as file:
        file.write(f"{json.dumps(ITEMS[0])}\n")
        file.truncate(1 << 27)  # 128 MiB of NUL bytes, which take no room on a disk
    with path.open("a") as file:
        file.write(f"\n{json.dumps(ITEMS[1])}\n{' ' * (1 << 20)}\n{' ' * ((1 << 20) + 1)}")
    tracemalloc.start()
    assert read_lines(path) == ([ITEMS[0], ITEMS[1]], Counter({"longer than 16,777,216 characters": 2}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_an_array_is_streamed(path: Path) -> None:
    item = json.dumps({"_id": "x", "text": "word " * 2000})
    path.write_text("[" + ",".join([item] * 4000) + "]")  # 40 MB
    tracemalloc.start()
    assert sum(1 for _ in json_array(path, Counter())) == 4000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_an_array_with_damage_is_streamed_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK", 1 << 14)
    monkeypatch.setattr(reading, "LONGEST", 1 << 16)
    item = json.dumps({"_id": "x", "text": "word " * 200})
    path.write_text("[" + ",".join([item] * 100 + [item[:-20]] + [item] * 9900) + "]")  # 10 MB
    skipped: Counter[str] = Counter()
    tracemalloc.start()
    assert sum(1 for _ in json_array(path, skipped)) == 10_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert skipped == {"broken JSON": 1}
    assert peak < 1e6


def test_any_array_of_objects_reads_as_json_does(path: Path) -> None:
    draw = random.Random(0)

    def text() -> str:
        return "".join(
            draw.choices(['"', "\\", "{", "}", "[", "]", ",", ":", " ", "\n", "é", "𝕏", "a"], k=draw.randrange(9))
        )

    def value(depth: int) -> Any:
        kinds = [text, lambda: None, lambda: draw.random(), lambda: draw.randrange(-9, 9)]
        if depth:
            kinds += [lambda: [value(depth - 1) for _ in range(draw.randrange(3))], lambda: mapping(depth - 1)]
        return draw.choice(kinds)()

    def mapping(depth: int) -> dict[str, Any]:
        return {text(): value(depth) for _ in range(draw.randrange(4))}

    for number in range(200):
        items = [mapping(3) for _ in range(draw.randrange(5))]
        path.write_text(json.dumps(items, ensure_ascii=number % 2 == 0), encoding="utf-8")
        assert read_array(path) == (items, Counter())


def test_items_that_are_no_objects_or_damaged_are_counted_by_reason() -> None:
    def build(item: dict[str, Any]) -> Example:
        if "prompt" not in item:
            raise Damaged("no prompt")
        return Example("1", item["prompt"], ("y",), "1")

    skipped: Counter[str] = Counter()
    examples = list(build_examples([{"prompt": "x"}, None, 3, "text", {}, []], build, skipped))
    assert [example.prompt for example in examples] == ["x"]
    assert skipped == {"no JSON object": 4, "no prompt": 1}


def test_repeated_ids_and_prompts_are_counted_and_the_first_stays() -> None:
    rows = [("1", "x"), ("2", "y"), ("1", "z"), ("3", "x"), ("1", "x")]
    skipped: Counter[str] = Counter()
    kept = list(distinct((Example(name, prompt, ("a",), name) for name, prompt in rows), skipped))
    assert [(example.id, example.prompt) for example in kept] == [("1", "x"), ("2", "y")]
    assert skipped == {"duplicate id": 1, "duplicate prompt": 2}


@pytest.mark.parametrize(
    ("published", "cleaned"),
    [
        ("4.9\\n", "4.9"),
        ("4.9\\\\n", "4.9"),
        ("$ 12.00 \\n ", "$ 12.00"),
        ("\\n", ""),
        (" 7\n", "7"),
        ("a\\nb", "a\\nb"),
        ("9 \\n\\n", "9"),
        ("\\alpha = n", "\\alpha = n"),
        ("a" + " " * 200_000 + "b", "a" + " " * 200_000 + "b"),  # an hour, if each blank began a search of its own
    ],
)
def test_answers_lose_the_backslash_n_at_their_end_and_nothing_else(published: str, cleaned: str) -> None:
    assert clean_answer(published) == cleaned
