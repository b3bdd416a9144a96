"""Raw files to the three splits that everything after reads, as Arrow files that are memory-mapped and never loaded.

No example of the test split shares its id, its group or its prompt with validation or training, and none of validation
with training: what would is dropped from the split that comes earlier in SPLITS, and counted.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from datasets import Dataset

from components.config import TaskSettings
from components.data import finqa, hotpotqa, jsonl, musique, skills
from components.data.example import Example, Loaded
from components.data.lengths import BATCH, Lengths, Tokens, fit, longest_prompt, statistics
from components.data.noise import Answers, label_noise
from components.data.reading import DUPLICATE_ID, DUPLICATE_PROMPT, Reader, digest
from components.data.templates import render
from components.errors import UserError
from components.progress import progress

SPLITS = ("train", "validation", "test")
REPORT = "report.json"

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("group", pa.string()),
        ("kind", pa.string()),
    ]
)
COUNTED = 1000  # the most prompts of a split whose tokens are counted for the report
FETCHED = ("finqa", "hotpotqa", "musique")  # what `thaw data fetch` knows
CARVED = 0.1  # of the training file, for validation, where no size is set


class Task(NamedTuple):
    """How a data set is read, and the names its authors give its files."""

    read: Reader
    train: tuple[str, ...]
    dev: tuple[str, ...] = ()
    test: tuple[str, ...] = ()  # HotPotQA and MuSiQue publish their test questions without answers


TASKS = {
    "skills": Task(skills.read, ("train.jsonl",), test=("test.jsonl",)),
    "finqa": Task(finqa.read, ("train.json",), ("dev.json",), ("test.json",)),
    "hotpotqa": Task(
        hotpotqa.read,
        ("train.json", "hotpot_train_v1.1.json"),
        ("dev_distractor.json", "hotpot_dev_distractor_v1.json"),
    ),
    "musique": Task(
        musique.read,
        ("train.jsonl", "musique_ans_v1.0_train.jsonl"),
        ("dev.jsonl", "musique_ans_v1.0_dev.jsonl"),
    ),
    "jsonl": Task(jsonl.read, ("train.jsonl",), ("validation.jsonl",), ("test.jsonl",)),
}


class Keys(NamedTuple):
    """What two examples of different splits must not share, as digests."""

    prompt: str
    id: str
    group: str


@dataclass(frozen=True)
class Source:
    """One raw file, and the keys of its examples in the order in which they are read."""

    path: Path
    read: Reader
    keys: list[Keys]
    skipped: Counter[str]


@dataclass
class Split:
    """The rows of a source that make a split, and how many were dropped, by the key shared with a later split."""

    source: Source
    rows: set[int]
    shared: Counter[str] = field(default_factory=Counter)


def prepare(settings: TaskSettings, out: Path, tokens: Tokens, budget: int) -> dict[str, Any]:
    """Write out/{train,validation,test}.arrow (columns id, prompt, answers, group, kind) and out/report.json.

    Splits that the authors publish are kept. A missing validation split is carved from the training file; a missing
    test split is half of the dev file. Limits keep the first examples of a shuffle that depends on the seed and the
    ids alone; a split keeps the order of its file. One input gives the same bytes every time.

    tokens: counts them for the model that will read the prompts.
    budget: tokens of its context that are kept free for what it writes.

    Returns:
        The report, by split: its `file`; what is `present` in that file = `loaded` + `skipped` by reason +
        `duplicates`; the rows `taken` from it for this split; of those the ones dropped because a later split `shared`
        their group, id or prompt; of those that the limit leaves, the ones `too_long` for `max_prompt_tokens` and left
        out; what is left (`final`), of these the ones `shortened` to fit and the ones given a wrong answer on purpose
        (`wrong_labels`); `answer_tokens` of all, and `prompt_tokens` of the `prompts_counted`, at most 1,000 chosen by
        the seed.

    Raises:
        UserError: the folder or a file is missing or cannot be read, or a split ends up empty.
    """
    most = longest_prompt(settings, tokens.context, budget)
    splits = _assign(_sources(settings), settings)
    _drop_shared(splits)
    chosen = {name: _limit(splits[name], getattr(settings, name), settings.seed) for name in SPLITS}
    for name in SPLITS:
        if not chosen[name]:
            raise UserError(_nothing_left(name, splits[name]))
    wrong = _wrong_labels(splits["train"].source, chosen["train"], settings)
    out.mkdir(parents=True, exist_ok=True)
    report = {}
    for name in SPLITS:
        split, path = replace(splits[name], rows=chosen[name]), out / f"{name}.arrow"
        found = _write_split(split, path, settings, tokens, most, wrong if name == "train" else {})
        report[name] = _facts(splits[name]) | found
    (out / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def load_split(folder: Path, name: str) -> Dataset:
    """A prepared split, memory-mapped: rows of id, prompt, answers, group and kind.

    Raises:
        UserError: the split was not prepared.
    """
    path = folder / f"{name}.arrow"
    if not path.is_file():
        raise UserError(f"there is no {path}; prepare the data first.")
    return Dataset.from_file(str(path))


def load_file(path: Path, settings: TaskSettings, tokens: Tokens, budget: int) -> Loaded:
    """All questions of one raw file of the task, with the prompts of the start that is set; tokens, budget: as above.

    Raises:
        UserError: the file cannot be read, or holds no question that can be asked.
    """
    source = _scan(path, _reader(settings))
    whole = Split(source, set(range(len(source.keys))))
    found, most = Lengths(), longest_prompt(settings, tokens.context, budget)
    shorten = settings.long_prompts == "shorten"
    kept = fit(_prompted(whole, settings, {}), tokens, most, shorten=shorten, sample=lambda _: False, found=found)
    loaded = Loaded(list(kept), source.skipped + Counter({"prompt too long": found.too_long}))
    if not loaded.examples:
        raise UserError(f"nothing of {path} is left to ask: {_reasons(loaded.skipped)}; check the file.")
    return loaded


def example(row: Mapping[str, Any]) -> Example:
    """The Example that a row of a prepared split holds."""
    return Example(**{name: row[name] for name in SCHEMA.names} | {"answers": tuple(row["answers"])})


def write(examples: Iterable[Example], path: Path) -> list[str]:
    """Stream examples into an Arrow IPC file that appears under its name only when complete; returns their ids."""
    ids: list[str] = []
    partial = path.with_suffix(".partial")
    remaining = iter(examples)
    with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
        while batch := list(islice(remaining, BATCH)):
            columns = [[getattr(example, name) for example in batch] for name in SCHEMA.names]
            writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
            ids += [example.id for example in batch]
    partial.replace(path)
    return ids


def _sources(settings: TaskSettings) -> dict[str, Source]:
    """The data set's files that exist, read once, by role: train, and dev or test or both."""
    task, folder = TASKS[settings.name], Path(settings.path)
    if not folder.is_dir():
        fetch = f", or fetch it: `thaw data fetch {settings.name}`" if settings.name in FETCHED else ""
        raise UserError(f"there is no folder {folder}; set task.path to the one that holds {task.train[0]}{fetch}.")
    paths = {role: _find(folder, getattr(task, role)) for role in ("train", "dev", "test")}
    if paths["train"] is None:
        raise UserError(f"{folder} has no training file; put {' or '.join(task.train)} there.")
    if paths["dev"] is None and paths["test"] is None:
        raise UserError(f"{folder} has nothing to test on; put {' or '.join(task.test + task.dev)} there.")
    return {role: _scan(path, _reader(settings)) for role, path in paths.items() if path is not None}


def _reader(settings: TaskSettings) -> Reader:
    """Reads the task's files and leaves out what is of another kind than those that are set."""
    read, kinds = TASKS[settings.name].read, settings.kinds

    def read_kinds(path: Path, skipped: Counter[str]) -> Iterator[Example]:
        for example in read(path, skipped):
            if example.kind in (kinds or ()):
                yield example
            else:
                skipped["of another kind"] += 1

    return read if kinds is None else read_kinds


def _find(folder: Path, names: tuple[str, ...]) -> Path | None:
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) > 1:
        raise UserError(f"{folder} has {' and '.join(path.name for path in found)}; keep the one to use.")
    return found[0] if found else None


def _scan(path: Path, read: Reader) -> Source:
    skipped: Counter[str] = Counter()
    examples = progress(read(path, skipped), f"reading {path.name}")
    keys = [
        Keys(digest("prompt", example.prompt), digest("id", example.id), digest("group", example.group))
        for example in examples
    ]
    return Source(path, read, keys, skipped)


def _assign(sources: dict[str, Source], settings: TaskSettings) -> dict[str, Split]:
    """Which rows of which source make each split, before anything shared is dropped."""
    whole = {role: Split(source, set(range(len(source.keys)))) for role, source in sources.items()}
    if "dev" not in whole:
        examples = len(sources["train"].keys)
        size = min(settings.validation or math.ceil(CARVED * examples), examples // 2)
        validation, train = _divide(sources["train"], size, settings.seed)
        return {"train": train, "validation": validation, "test": whole["test"]}
    if "test" not in whole:
        test, validation = _divide(sources["dev"], math.ceil(len(sources["dev"].keys) / 2), settings.seed)
        return {"train": whole["train"], "validation": validation, "test": test}
    return {"train": whole["train"], "validation": whole["dev"], "test": whole["test"]}


def _divide(source: Source, count: int, seed: int) -> tuple[Split, Split]:
    """At least `count` rows in whole groups, chosen by the seed, and all the others."""
    members = defaultdict(list)
    for row, keys in enumerate(source.keys):
        members[keys.group].append(row)
    carved: set[int] = set()
    for group in sorted(members, key=lambda group: digest(str(seed), group)):
        if len(carved) >= count:
            break
        carved.update(members[group])
    return Split(source, carved), Split(source, set(range(len(source.keys))) - carved)


def _drop_shared(splits: dict[str, Split]) -> None:
    """Take from each split the rows that share a key with a later one: test comes first, training gives way."""
    later: set[str] = set()
    for split in (splits[name] for name in reversed(SPLITS)):
        kept = set()
        for row in split.rows:
            shared = [name for name, key in split.source.keys[row]._asdict().items() if key in later]
            if shared:
                split.shared[shared[0]] += 1
            else:
                kept.add(row)
        split.rows = kept
        later.update(key for row in kept for key in split.source.keys[row])


def _limit(split: Split, limit: int | None, seed: int) -> set[int]:
    """The first `limit` rows of a shuffle that depends on the seed and the ids alone."""
    return set(sorted(split.rows, key=lambda row: digest(str(seed), split.source.keys[row].id))[:limit])


def _wrong_labels(source: Source, rows: set[int], settings: TaskSettings) -> dict[str, Answers]:
    """The answers that task.label_noise gives to a share of these rows, by the example's id."""
    if not settings.label_noise:
        return {}
    examples = source.read(source.path, Counter())
    right = {example.id: example.answers for row, example in enumerate(examples) if row in rows}
    noisy = label_noise(list(right.values()), settings.label_noise, settings.seed)
    return {name: answers for name, answers in zip(right, noisy, strict=True) if answers != right[name]}


def _write_split(
    split: Split, path: Path, settings: TaskSettings, tokens: Tokens, most: int | None, wrong: Mapping[str, Answers]
) -> dict[str, Any]:
    """Write the rows of a split, those with too long a prompt shortened or left out; returns what the report tells."""
    source, found = split.source, Lengths()
    counted = {source.keys[row].id for row in _limit(split, COUNTED, settings.seed)}
    examples = progress(_prompted(split, settings, wrong), f"writing {path.stem}", total=len(split.rows))
    shorten = settings.long_prompts == "shorten"
    ids = write(
        fit(examples, tokens, most, shorten=shorten, sample=lambda item: digest("id", item.id) in counted, found=found),
        path,
    )
    if not ids:
        path.unlink()
        raise UserError(
            f"every prompt of the {path.stem} split has more than {most} tokens; raise task.max_prompt_tokens or lower"
            " rollout.max_new_tokens."
        )
    return {
        "max_prompt_tokens": most,
        "too_long": found.too_long,
        "final": len(ids),
        "shortened": found.shortened,
        "wrong_labels": len(wrong.keys() & set(ids)),
        "prompts_counted": len(found.prompts),
        "prompt_tokens": statistics(found.prompts),
        "answer_tokens": statistics(found.answers),
    }


def _prompted(split: Split, settings: TaskSettings, wrong: Mapping[str, Answers]) -> Iterator[Example]:
    """The rows of a split, read again, with the prompts of the start that is set and the wrong labels."""
    # How warm the embedded task starts is a matter of its model; its prompts are the same in every start.
    warm = settings.start == "warm" and settings.name != "skills"
    for row, example in enumerate(split.source.read(split.source.path, Counter())):
        if row in split.rows:
            prompt = render(f"{settings.name}-warm", problem=example.prompt) if warm else example.prompt
            yield replace(example, prompt=prompt, answers=wrong.get(example.id, example.answers))


def _facts(split: Split) -> dict[str, Any]:
    source = split.source
    repeated = (DUPLICATE_ID, DUPLICATE_PROMPT)
    return {
        "file": source.path.name,
        "present": len(source.keys) + source.skipped.total(),
        "loaded": len(source.keys),
        "skipped": {reason: count for reason, count in sorted(source.skipped.items()) if reason not in repeated},
        "duplicates": sum(source.skipped[reason] for reason in repeated),
        "taken": len(split.rows) + split.shared.total(),
        "shared": dict(sorted(split.shared.items())),
    }


def _nothing_left(name: str, split: Split) -> str:
    facts = _facts(split)
    return (
        f"nothing of {split.source.path} is left for the {name} split: {facts['present']} items,"
        f" skipped: {_reasons(facts['skipped'])};"
        f" {facts['duplicates']} repeated, {split.shared.total()} sharing prompt, id or group with another split;"
        " check the file."
    )


def _reasons(skipped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in skipped.items() if count) or "none"
