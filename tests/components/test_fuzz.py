"""Ten thousand inputs that nobody would write by hand: what is read is kept or counted, and nothing crashes.

The examples are the same in every run: a failure shows again where it was seen.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, configuration, example, given, settings
from hypothesis import strategies as some

from components.config import Settings, load_settings
from components.data.example import Loaded
from components.data.raw_files import TASKS
from components.data.reading import collect, open_text
from components.errors import UserError
from components.evaluation import answers
from tests.conftest import PROJECT

configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "thaw-hypothesis")  # nothing of it in the project
AS_EVER = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)  # what takes long is for CI to see

# One good item of each data set.
ITEMS: dict[str, dict[str, Any]] = {
    "finqa": {
        "id": "page-1", "filename": "page", "pre_text": ["before ."], "post_text": ["after ."],
        "table": [["year", 2019], ["sales", "$ 1.5"]], "qa": {"question": "sales?", "answer": "1.5\\n"},
    },
    "hotpotqa": {
        "_id": "a", "question": "who &amp; when?", "answer": "a king", "supporting_facts": [["one", 0]],
        "context": [["one", ["A king.", " It was 1066."]], ["two", ["Nothing."]]],
    },
    "musique": {
        "id": "2hop", "question": "who?", "answer": "a king", "answer_aliases": ["the king"], "answerable": True,
        "paragraphs": [
            {"idx": 0, "title": "one", "paragraph_text": "A king.", "is_supporting": True},
            {"idx": 1, "title": "two", "paragraph_text": "Nothing.", "is_supporting": False},
        ],
        "question_decomposition": [{"question": "q", "paragraph_support_idx": 0}],
    },
    "jsonl": {"id": 1, "prompt": "1+1", "answer": "2", "aliases": ["two"], "group": "sums", "kind": "plus"},
    "skills": {"id": "0123", "prompt": "w0123?", "answer": "a:0123", "kind": "sort"},
}  # fmt: skip
ARRAYS = ("finqa", "hotpotqa")

texts = some.one_of(
    some.text(some.characters(), max_size=8),  # half surrogate pairs among them
    some.sampled_from(["", " ", "\0", "\\n", f"&#{'9' * 5000};", "&#xd800;", "\ufeff", "{}", "../..", "=1+1", "\r\n"]),
)
values = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | texts,
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in an item: of a field, of a list's member, and so on down."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield (*place, key)
        yield from places(below, (*place, key))


@some.composite
def items(draw: some.DrawFn, task: str) -> Any:
    """Anything at all, or a good item in which something is something else, or is gone."""
    if draw(some.integers(0, 9)) == 0:
        return draw(values)
    item = json.loads(json.dumps(ITEMS[task]))
    for _ in range(draw(some.integers(0, 2))):
        *way, last = draw(some.sampled_from(list(places(item)) or [("id",)]))
        target = item
        for key in way:
            target = target[key]
        if draw(some.booleans()):
            target[last] = draw(values)
        else:
            del target[last]
    return item


@pytest.fixture(scope="module")
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "file"


def check_kept(task: str, path: Path, present: int | None) -> bool:
    """Read a file: every item is an example or has a reason, or one sentence names the file; returns which."""
    sentence = ""
    try:
        loaded = collect(TASKS[task].read, path)
    except UserError as error:
        loaded, sentence = Loaded(), str(error)
    if sentence:
        assert sentence.startswith((f"{path} ", f"{path}:"))
        return False
    assert all(reason and count > 0 for reason, count in loaded.skipped.items())
    assert present is None or len(loaded.examples) + loaded.skipped.total() == present
    ids = Counter(example.id for example in loaded.examples)
    assert len(ids) == len(loaded.examples)
    for found in loaded.examples:
        assert found.prompt.strip()
        assert found.group
        assert found.answers
        assert all(answer.strip() for answer in found.answers)
        "".join([found.id, found.prompt, *found.answers]).encode()
    return True


@pytest.mark.parametrize("task", ITEMS)
@given(data=some.data())
@settings(AS_EVER, max_examples=800)
def test_every_item_is_kept_or_counted(task: str, path: Path, data: some.DataObject) -> None:
    found = data.draw(some.lists(items(task), max_size=4))
    ascii_alone, end = data.draw(some.booleans()), data.draw(some.sampled_from(["\n", "\r\n"]))
    lines = [json.dumps(item, ensure_ascii=ascii_alone) for item in found]
    text = f"[{f',{end}'.join(lines)}]" if task in ARRAYS else end.join(lines)
    mark = data.draw(some.sampled_from(["", "\ufeff"]))
    path.write_bytes((mark + text).encode(errors="surrogatepass"))
    whole = check_kept(task, path, len(found))
    # Somebody's own lines have to be right; published files lose what is not, and are refused where nothing is.
    assert whole or task in ("jsonl", "skills") or (task == "musique" and not any(isinstance(x, dict) for x in found))


@pytest.mark.parametrize("task", ITEMS)
@given(data=some.data())
@settings(AS_EVER, max_examples=500)
def test_files_that_were_damaged_byte_by_byte(task: str, path: Path, data: some.DataObject) -> None:
    line = json.dumps(ITEMS[task]).encode()
    content = bytearray(b"[%s]" % b", ".join([line] * 3) if task in ARRAYS else b"\n".join([line] * 3))
    for _ in range(data.draw(some.integers(1, 4))):
        start = data.draw(some.integers(0, len(content)))
        end = data.draw(some.sampled_from([start, start + 1, start + 20, len(content)]))
        content[start:end] = data.draw(some.binary(max_size=4))
    path.write_bytes(content)
    with open_text(path) as file:
        lines = sum(bool(line.strip()) for line in file)
    check_kept(task, path, None if task in ARRAYS else lines)


def names(model: type[Settings] | Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings and sections."""
    for name, field in getattr(model, "model_fields", {}).items():
        yield prefix + name
        yield from names(field.annotation, f"{prefix}{name}.")


# What YAML takes for something, and then finds that it is not.
ODD = ["2024-13-45", "0x_", "0b_", "!!int x", "!!bool x", "!!timestamp x", "!!python/object:os.system x", "&a [*a]",
       "[" * 400, "9" * 5000, ".nan", ".inf", "1:99", "<<: 3", "? [a]", '"\\0"', '"\\ud800"', "{x: 1}"]  # fmt: skip
yaml_texts = some.one_of(
    some.sampled_from(ODD), texts, some.text(" \n:-[]{}&*!|>'\"%@#,?ab10.", max_size=12), values.map(json.dumps)
)
overrides = some.builds(
    "{}{}{}".format,
    some.sampled_from(list(names(Settings))) | texts,
    some.sampled_from(["=", " = ", ".", ""]),
    yaml_texts,
)


@given(changes=some.lists(overrides, min_size=1, max_size=3))
@example(["train.steps=2024-13-45"])
@example(['task.path="\\0"'])
@settings(AS_EVER, max_examples=1200)
def test_settings_are_taken_or_refused_in_a_sentence(params: Path, changes: list[str]) -> None:
    check_settings(params, changes)


@given(data=some.data())
@settings(AS_EVER, max_examples=800)
def test_settings_files_of_any_kind(path: Path, data: some.DataObject) -> None:
    text = data.draw(yaml_texts)
    if data.draw(some.booleans()):
        text = f"extends: {text}"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    check_settings(path, [])


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's settings without their comments, which take long to read."""
    path = tmp_path_factory.mktemp("settings") / "params.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load((PROJECT / "params.yaml").read_text(encoding="utf-8"))))
    return path


def check_settings(path: Path, changes: list[str]) -> None:
    try:
        found = load_settings(path, changes)
    except UserError as error:
        found = str(error)
    if isinstance(found, str):
        assert len(found) < 2000, "this is no sentence"
        return
    assert Settings.model_validate_json(found.model_dump_json()) == found
    json.dumps(found.model_dump(mode="json"), allow_nan=False, ensure_ascii=False).encode()


said = some.one_of(
    some.text(max_size=12),
    some.text("0123456789.,-+−%$€ amilonthus\\\n", max_size=16),
    some.sampled_from(
        ["9" * 2000, "." * 300 + "x", "x" + " " * 300 + "x", "The", "-", "1e9", "½", "٣", "0." + "1" * 2000]
    ),
)


@pytest.mark.parametrize("task", TASKS)
@given(sampled=said, gold=said)
@example("9" * 1_100_000, "9" * 1_100_000)
@settings(AS_EVER, max_examples=400)
def test_any_two_answers_can_be_compared(task: str, sampled: str, gold: str) -> None:
    equal = answers.exact(sampled, [gold], task)
    assert answers.is_correct(sampled, [gold], task) or not equal
    assert not answers.exact_match(sampled, [gold]) or equal
    assert equal == answers.exact(gold, [sampled], task)
    assert answers.exact(gold, [gold], task) == bool(gold.strip())
    if task == "finqa":
        assert answers.same_value(gold, [gold]) == bool(gold.strip())
        assert isinstance(answers.same_value(sampled, [gold]), bool)
