"""The published data sets from the Hugging Face hub, written as the official files that the loaders read.

Mirrors differ from the official files in their columns, not in what these hold; converting them once keeps one loader
for each data set. Only repositories of plain data files can be loaded: code of theirs is never run.

Records are converted as they come, some at a time: a file of a few kilobytes can unpack to more than a disk holds.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
from datasets import load_dataset_builder
from pyarrow.parquet import ParquetFile

from components.config import HubSource
from components.data.raw_files import TASKS
from components.errors import UserError
from components.progress import progress

ROLES = {"train": "train", "validation": "dev", "test": "test"}  # the hub's name of a split, and ours of its file

# The most of one file; HotPotQA's training questions, the largest, are 90 thousand of 0.6 GB.
MOST_RECORDS, MOST_CHARACTERS = 10**7, 2 * 10**10
BATCH = 100  # records of a Parquet file that are unpacked at once

Record = dict[str, Any]


def fetch(task: str, source: HubSource, out: Path) -> dict[str, int]:
    """Download a data set and write it to `out` in the form of its authors' files (train.json, dev.json, ...).

    HotPotQA's and MuSiQue's test splits have no answers and are left out.

    Returns:
        The records of each file written.

    Raises:
        UserError: the hub or the repository cannot be reached, or it holds another kind of data, or too much.
    """
    found = _load(task, source)
    written = {}
    out.mkdir(parents=True, exist_ok=True)
    for split, role in ROLES.items():
        names = getattr(TASKS[task], role)
        if split not in found or not names:
            continue
        rows = progress(_readable(found[split], task, source), f"writing {names[0]}")
        written[names[0]] = _write(_records(rows, task, source), out / names[0])
    return written


def _load(task: str, source: HubSource) -> Mapping[str, Iterable[Record]]:
    """The splits of a repository, of which nothing is unpacked yet."""
    try:
        builder = load_dataset_builder(source.repository, source.config, revision=source.revision)
        files = {str(split): [*map(str, found)] for split, found in (builder.config.data_files or {}).items()}
        everything = [*chain(*files.values())]
        if all(file.endswith(".parquet") for file in everything):
            found = {split: _parquet(found) for split, found in files.items()}
        else:
            found = {str(split): rows for split, rows in builder.as_streaming_dataset().items()}
    except Exception as error:
        raise _unreachable(task, source, error) from error
    if outside := [file for file in everything if not _inside(file, source)]:
        raise UserError(f"{_where(source)} takes its data from elsewhere, {outside[0]}; name another repository.")
    if not {"train", "validation"} <= found.keys():
        raise UserError(f"{_where(source)} has no splits train and validation; correct hub.{task}.repository.")
    return found


def _parquet(files: Sequence[str]) -> Iterator[Record]:
    """The rows of Parquet files. `datasets` would unpack up to a million of them at once, as many as a file says."""
    for name in files:
        with fsspec.open(name) as file:
            for batch in ParquetFile(file).iter_batches(BATCH):
                yield from batch.to_pylist()


def _inside(file: str, source: HubSource) -> bool:
    """Whether a file is one of the repository's own; its card could name any."""
    if Path(source.repository).is_dir():
        return Path(os.path.abspath(file)).is_relative_to(os.path.abspath(source.repository))
    return file.startswith("hf://")


def _readable(rows: Iterable[Record], task: str, source: HubSource) -> Iterator[Record]:
    try:
        yield from rows
    except Exception as error:
        raise _unreachable(task, source, error) from error


def _unreachable(task: str, source: HubSource, error: Exception) -> UserError:
    """In place of an error of dozens of kinds: of the connection, the hub, the repository, its files."""
    return UserError(f"{task} cannot be fetched from {_where(source)}: {' '.join(str(error).split())[:300]}")


def _where(source: HubSource) -> str:
    return source.repository + (f" at {source.revision}" if source.revision else "")


def _records(rows: Iterator[Record], task: str, source: HubSource) -> Iterator[Record]:
    """The rows in the form of the authors' records."""
    form = FORMS[task]
    first = next(rows, None)
    if first is None:
        return
    if missing := [name for name in form.columns if name not in first]:
        raise UserError(
            f"{source.repository} has no column {missing[0]} but {', '.join(first)}; name a mirror of"
            f" {task} with the columns {', '.join(form.columns)} in hub.{task}.repository."
        )
    for number, row in enumerate(chain([first], rows), start=1):
        try:
            record = form.record(row)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"record {number} of {_where(source)} has another form than those of {task} ({error});"
                f" name another mirror in hub.{task}.repository."
            ) from error
        yield record


def _finqa(row: Record) -> Record:
    """Mirrors have `question` and `answer`, or `answers`, beside the page instead of in `qa`."""
    answer = row.get("answer") or row.get("answers")
    qa = row.get("qa") or {"question": row.get("question"), "answer": answer}
    return {name: value for name, value in row.items() if value is not None} | {"qa": qa}


def _hotpotqa(row: Record) -> Record:
    """Columns of lists instead of lists of pairs, and another name for the id."""
    pairs = {"context": ("title", "sentences"), "supporting_facts": ("title", "sent_id")}
    listed = {
        name: [list(pair) for pair in zip(row[name][first], row[name][second], strict=True)]
        for name, (first, second) in pairs.items()
    }
    return row | {"_id": row["id"]} | listed


class _Form(NamedTuple):
    """What a mirror must have, and how one of its rows becomes a record as its authors publish it."""

    columns: tuple[str, ...]
    record: Callable[[Record], Record]


FORMS = {
    "finqa": _Form(("id", "pre_text", "table", "post_text"), _finqa),
    "hotpotqa": _Form(("id", "question", "answer", "context", "supporting_facts"), _hotpotqa),
    "musique": _Form(("id", "question", "answer", "answer_aliases", "paragraphs", "question_decomposition"), dict),
}


def _write(records: Iterable[Record], path: Path) -> int:
    """Write a JSON array, or JSON Lines where the name says so, one record a line; the file appears when complete.

    Raises:
        UserError: there is more than a data set of questions has.
    """
    begin, between, end = ("", "\n", "\n") if path.suffix == ".jsonl" else ("[\n", ",\n", "\n]\n")
    partial = path.with_name(path.name + ".partial")
    count = characters = 0
    with partial.open("w", encoding="utf-8", errors="surrogatepass") as file:  # the loaders count what is no text
        file.write(begin)
        for record in records:
            text = json.dumps(record, ensure_ascii=False, default=str)
            count, characters = count + 1, characters + len(text)
            if count > MOST_RECORDS or characters > MOST_CHARACTERS:
                partial.unlink()
                raise UserError(
                    f"{path.name} would have more than {MOST_RECORDS:,} records or {MOST_CHARACTERS:,} characters;"
                    " this is no data set of questions, name another repository."
                )
            file.write((between if count > 1 else "") + text)
        file.write(end)
    partial.replace(path)
    return count
