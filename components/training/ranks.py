"""The processes of a run: which one this is, and what they tell each other."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import distributed

from components.errors import TemporaryError

Item = TypeVar("Item")

# What PyTorch's collectives say where the process at the other end is gone.
CONNECTION_LOST = re.compile(r"connection (closed|reset|refused)|broken pipe|remote process exit", re.IGNORECASE)
LAUNCHER_SECONDS = (
    3.0  # within which a launcher sees that a process of its own is gone; DeepSpeed's looks once a second
)


class Ranks:
    """This process among those that torch.distributed knows; alone where it knows none."""

    def __init__(self) -> None:
        known = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if known else 0
        self.size = distributed.get_world_size() if known else 1

    @property
    def first(self) -> bool:
        """Whether this process speaks for all: it alone writes results, logs and progress."""
        return self.rank == 0

    def most(self, number: int) -> int:
        """The largest of all processes' numbers."""
        return max(self.gather(number))

    def gather(self, item: Item) -> list[Item]:
        """Every process's item, in order of ranks, on every process."""
        if self.size == 1:
            return [item]
        items: list[Item | None] = [None] * self.size
        distributed.all_gather_object(items, item)
        return items  # type: ignore[return-value]

    def merge(self, items: dict[int, Item]) -> list[Item]:
        """The items of all processes by their places, which are 0 and up; on every process."""
        everyone = {place: item for part in self.gather(items) for place, item in part.items()}
        return [everyone[place] for place in range(len(everyone))]

    def share(self, item: Item) -> Item:
        """The first process's item, on every process."""
        return self.gather(item)[0]

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def lost_processes_told() -> Iterator[None]:
    """Tell in one sentence that another process of the run is gone, wherever this one was waiting for it.

    Where a launcher watches over the processes it ends this one before that, and the run has the lost one's status.

    Raises:
        TemporaryError: a process was killed, or it has ended with an error of its own.
    """
    try:
        yield
    except RuntimeError as error:
        if Ranks().size == 1 or not CONNECTION_LOST.search(str(error)):
            raise
        time.sleep(LAUNCHER_SECONDS)
        raise TemporaryError(
            "another training process of this run is gone: it was killed, or has said why it ended; run it again to"
            " resume from the last checkpoint."
        ) from None
