"""The published data sets from the Hugging Face hub, written as the official files that the loaders read.

Mirrors differ from the official files in their columns, not in what these hold; converting them once keeps one loader
for each data set. Only repositories of plain data files can be loaded: code of theirs is never run.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, DatasetDict, load_dataset

from components.config import HubSource
from components.data.prepare import TASKS
from components.errors import UserError
from components.progress import progress

ROLES = {"train": "train", "validation": "dev", "test": "test"}  # the hub's name of a split, and ours of its file

Record = dict[str, Any]


def fetch(task: str, source: HubSource, out: Path) -> dict[str, int]:
    """Download a data set and write it to `out` in the form of its authors' files (train.json, dev.json, ...).

    HotPotQA's and MuSiQue's test splits have no answers and are left out.

    Returns:
        The records of each file written.

    Raises:
        UserError: the hub or the repository cannot be reached, or it holds another kind of data.
    """
    found = _load(task, source)
    form = FORMS[task]
    written = {}
    out.mkdir(parents=True, exist_ok=True)
    for split, role in ROLES.items():
        names = getattr(TASKS[task], role)
        if split not in found or not names:
            continue
        rows = found[split]
        if missing := [name for name in form.columns if name not in rows.column_names]:
            raise UserError(
                f"{source.repository} has no column {missing[0]} but {', '.join(rows.column_names)}; name a mirror of"
                f" {task} with the columns {', '.join(form.columns)} in hub.{task}.repository."
            )
        records = (form.record(row) for row in progress(rows, f"writing {names[0]}", total=len(rows)))
        written[names[0]] = _write(records, out / names[0])
    return written


def _load(task: str, source: HubSource) -> dict[str, Dataset]:
    where = source.repository + (f" at {source.revision}" if source.revision else "")
    try:
        found = load_dataset(source.repository, source.config, revision=source.revision)
    except Exception as error:  # dozens of kinds: of the connection, the hub, the repository, its files
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{task} cannot be fetched from {where}: {reason}") from error
    if not isinstance(found, DatasetDict) or not {"train", "validation"} <= found.keys():
        raise UserError(f"{where} has no splits train and validation; correct hub.{task}.repository.")
    return {str(split): rows for split, rows in found.items()}


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
    """Write a JSON array, or JSON Lines where the name says so, one record a line; the file appears when complete."""
    begin, between, end = ("", "\n", "\n") if path.suffix == ".jsonl" else ("[\n", ",\n", "\n]\n")
    partial = path.with_name(path.name + ".partial")
    count = 0
    with partial.open("w", encoding="utf-8") as file:
        file.write(begin)
        for record in records:
            file.write((between if count else "") + json.dumps(record, ensure_ascii=False))
            count += 1
        file.write(end)
    partial.replace(path)
    return count
