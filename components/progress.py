"""Progress on everything that takes longer than a glance: a bar on a terminal, a line now and then elsewhere.

Of processes that work together the first one speaks for all.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress(items: Iterable[Item], description: str, *, total: int | None = None) -> Iterator[Item]:
    """Iterate, showing how far it is; in a log file or a pipe at most one line in ten seconds."""
    terminal = sys.stderr.isatty()
    yield from tqdm(
        items, desc=description, total=total, mininterval=0.2 if terminal else 10, leave=terminal, delay=2,
        ascii=not terminal, dynamic_ncols=terminal, file=None if terminal else _Lines(), disable=not speaks(),
    )  # fmt: skip


def say(message: str) -> None:
    """A line for people, above any bar that is shown."""
    if speaks():
        tqdm.write(message, file=sys.stderr)


def speaks() -> bool:
    """Whether this process is the first of those that a launcher started, or alone."""
    return os.environ.get("RANK", "0") == "0"


class _Lines:
    """Takes what tqdm would draw over and over in one place, and writes it line by line."""

    def write(self, text: str) -> None:
        if text := text.strip():
            print(text, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()
