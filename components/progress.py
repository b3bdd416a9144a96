"""Progress on all that takes longer than a glance: a line that changes on a terminal, a line now and then elsewhere.

Of processes that work together the first one speaks for all. What is shown is also kept for `thaw status`.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Generic, TypeVar

from tqdm import tqdm

from components.job import report, speaks

Item = TypeVar("Item")
SHOWN_AFTER = 2  # seconds
TERMINAL_SECONDS, LINE_SECONDS = 0.2, 10  # between two looks


class Progress(Generic[Item]):
    """What is gone through, and how far it is.

    done: how much an earlier process has done of `total`. at_once: show it from the beginning, not only if it lasts.
    """

    _open: ClassVar[list["Progress"]] = []  # the first one tells how far the whole work is

    def __init__(
        self,
        items: Iterable[Item],
        description: str,
        *,
        total: int | None = None,
        done: int = 0,
        at_once: bool = False,
    ) -> None:
        self._items, self._description = items, description
        self._delay = 0 if at_once else SHOWN_AFTER
        length = len(items) if hasattr(items, "__len__") else None
        self._total = done + length if total is None and length is not None else total
        self._first = self._done = done
        self._said, self._figures = "", {}
        self._bar: tqdm | None = None

    def show(self, said: str, figures: Mapping[str, float]) -> None:
        """What there is to say beside how far it is, in words, and in figures for programs."""
        self._said, self._figures = said, figures
        if self._bar is not None:
            self._bar.set_postfix_str(said, refresh=False)

    def __iter__(self) -> Iterator[Item]:
        self._began, self._bar = time.monotonic(), self._new_bar()
        outermost = not Progress._open
        Progress._open.append(self)
        try:
            for item in self._bar:
                yield item
                self._done += 1
                if outermost:
                    self._report()
        finally:
            self._bar.close()
            if self in Progress._open:
                Progress._open.remove(self)

    def _report(self) -> None:
        told = {"left": self.left, "said": self._said, "figures": self._figures}
        report(self._description, self._done, self._total, **told)

    @property
    def left(self) -> float | None:
        """Seconds that the rest takes if it goes on as until now."""
        if self._total is None or self._done == self._first:
            return None
        each = (time.monotonic() - self._began) / (self._done - self._first)
        return each * max(0, self._total - self._done)

    def _new_bar(self) -> tqdm:
        terminal = rewrites_lines()
        return tqdm(
            self._items, desc=self._description, total=self._total, initial=self._first, smoothing=0,
            mininterval=TERMINAL_SECONDS if terminal else LINE_SECONDS, delay=self._delay,
            leave=None if terminal else False, position=None if terminal else 0, ascii=None if terminal else True,
            miniters=1, dynamic_ncols=terminal, bar_format=self._format(terminal), file=None if terminal else _Lines(),
            disable=not speaks(),
        )  # fmt: skip

    def _format(self, terminal: bool) -> str:
        if self._total is None:
            return "{desc}: {n_fmt} in {elapsed}{postfix}"
        if terminal:
            return "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"
        return "{desc}: {percentage:.0f}%, {n_fmt} of {total_fmt}, {remaining} left{postfix}"


def progress(items: Iterable[Item], description: str, *, total: int | None = None) -> Iterator[Item]:
    """Iterate, showing how far it is; in a log file or a pipe at most one line in ten seconds."""
    return iter(Progress(items, description, total=total))


def say(message: str) -> None:
    """A line for people, above any bar that is shown."""
    if speaks():
        tqdm.write(message, file=sys.stderr)


def say_last(message: str) -> None:
    """A line for people below the bars of work that has been given up."""
    for bar in reversed(Progress._open):
        if bar._bar is not None:
            bar._bar.close()
    Progress._open.clear()
    say(message)


def rewrites_lines() -> bool:
    """Whether what is said goes to a terminal that a person looks at, where a line can be written over."""
    watched = os.environ.get("CI", "").lower() in ("", "0", "false") and os.environ.get("TERM") != "dumb"
    return watched and sys.stderr.isatty()


class _Lines:
    """Takes what tqdm would draw over and over in one place, and writes it line by line."""

    def write(self, text: str) -> None:
        if text := text.strip():
            print(text, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()
