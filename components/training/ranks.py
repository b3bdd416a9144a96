"""The processes of a run: which one this is, and what they tell each other."""

from typing import TypeVar

from torch import distributed

Item = TypeVar("Item")


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
