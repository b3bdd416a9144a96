"""The raw files of a data set: what its authors call them, how they are read, and the keys of their examples."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from components.config import TaskSettings
from components.data import finqa, hotpotqa, jsonl, musique, skills
from components.data.example import Example
from components.data.reading import Reader, digest
from components.errors import UserError
from components.progress import progress

FETCHED = ("finqa", "hotpotqa", "musique")  # what `thaw data fetch` knows


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


def sources_of(settings: TaskSettings) -> dict[str, Source]:
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
    return {role: scan(path, reader_of(settings)) for role, path in paths.items() if path is not None}


def reader_of(settings: TaskSettings) -> Reader:
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


def scan(path: Path, read: Reader) -> Source:
    """Read a file once, for the keys of its examples and what is left out of it."""
    skipped: Counter[str] = Counter()
    examples = progress(read(path, skipped), f"reading {path.name}")
    keys = [
        Keys(digest("prompt", example.prompt), digest("id", example.id), digest("group", example.group))
        for example in examples
    ]
    return Source(path, read, keys, skipped)
