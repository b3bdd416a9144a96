"""A prepared split as an Arrow file, which is memory-mapped and never loaded."""

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from components.data.example import Example
from components.errors import UserError

ROWS = 256  # of a batch in the file
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("group", pa.string()),
        ("kind", pa.string()),
    ]
)


def load_split(folder: Path, name: str) -> Dataset:
    """A prepared split, memory-mapped: rows of id, prompt, answers, group and kind.

    Raises:
        UserError: the split was not prepared.
    """
    path = folder / f"{name}.arrow"
    if not path.is_file():
        raise UserError(f"there is no {path}; prepare the data first.")
    return Dataset.from_file(str(path))


def example(row: Mapping[str, Any]) -> Example:
    """The Example that a row of a prepared split holds."""
    return Example(**{name: row[name] for name in SCHEMA.names} | {"answers": tuple(row["answers"])})


def write(examples: Iterable[Example], path: Path) -> list[str]:
    """Stream examples into an Arrow IPC file that appears under its name only when complete; returns their ids."""
    ids: list[str] = []
    partial = path.with_suffix(".partial")
    remaining = iter(examples)
    with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
        while batch := list(islice(remaining, ROWS)):
            columns = [[getattr(example, name) for example in batch] for name in SCHEMA.names]
            writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
            ids += [example.id for example in batch]
    partial.replace(path)
    return ids
