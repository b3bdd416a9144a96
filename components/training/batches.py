"""What is trained together: the rollouts of an example, and micro-batches cut from them by tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from components.objective.estimators import Coefficients
from components.policy.logprobs import Row
from components.rollout.engine import Rollout


@dataclass(frozen=True)
class Group:
    """The rollouts of one example, ready to be scored and weighed.

    answers: the answer scored behind each rationale: the gold one, or the one that was sampled.
    reward: 1 for each rollout whose sampled answer is exactly y*; None where no answer was sampled.
    example: the example's id. kind: what sort of question it is, or empty.
    place: of the example in its step, whichever process trains it; what is drawn for the group depends on it.
    """

    prompt: tuple[int, ...]
    rollouts: list[Rollout]
    answers: list[tuple[int, ...]]
    reward: list[float] | None
    example: str = ""
    place: int = 0
    kind: str = ""

    @property
    def rows(self) -> list[Row]:
        """What is read of each rollout, in their order."""
        return [
            Row(rollout.rationale_ids, answer, rollout.forced_end)
            for rollout, answer in zip(self.rollouts, self.answers, strict=True)
        ]


@dataclass(frozen=True)
class GroupSlice:
    """Some rollouts of a group that are run together, and their coefficients, if those are known before they are run.

    coefficients: [1, M] of the whole group.
    """

    group: Group
    members: tuple[int, ...]
    coefficients: Coefficients | None = None

    @property
    def rows(self) -> list[Row]:
        """What is read of each member, in the members' order."""
        rows = self.group.rows
        return [rows[member] for member in self.members]

    @property
    def tokens(self) -> int:
        """How many ids are run; what several rollouts read in common is run once."""
        return len(self.group.prompt) + sum(map(len, {row.read for row in self.rows}))

    @property
    def trained(self) -> "GroupSlice":
        """The part of it that carries a gradient; all of it while its coefficients are not known."""
        if self.coefficients is None:
            return self
        matters = ((self.coefficients.score != 0) | (self.coefficients.path != 0))[0]
        return replace(self, members=tuple(member for member in self.members if matters[member]))

    @property
    def weights(self) -> tuple[Tensor, Tensor]:
        """Score and path coefficient of each member, [members] each; they have to be known."""
        assert self.coefficients is not None
        members = list(self.members)
        return self.coefficients.score[0, members], self.coefficients.path[0, members]

    def with_coefficients(self, coefficients: Coefficients) -> "GroupSlice":
        """The same rollouts, with the coefficients of their group."""
        return replace(self, coefficients=coefficients)

    @property
    def longest(self) -> int:
        """How many ids its longest row reads."""
        return max(len(row.read) for row in self.rows)


def cut(part: GroupSlice, most_tokens: int) -> Iterator[GroupSlice]:
    """Cut a slice into ones of at most `most_tokens` ids, neighbours in length together; one row is the least.

    The group's coefficients have to be known, or it is not to be cut at all.
    """
    prompt, reads = len(part.group.prompt), [row.read for row in part.group.rows]
    alike: dict[tuple[int, ...], list[int]] = {}
    for member in sorted(part.members, key=lambda index: len(reads[index])):
        alike.setdefault(reads[member], []).append(member)
    members: list[int] = []
    tokens = prompt
    for read, same in alike.items():
        if members and tokens + len(read) > most_tokens:
            yield GroupSlice(part.group, tuple(sorted(members)), part.coefficients)
            members, tokens = [], prompt
        members += same
        tokens += len(read)
    if members:
        yield GroupSlice(part.group, tuple(sorted(members)), part.coefficients)


def micro_batches(slices: Sequence[GroupSlice], most_tokens: int) -> list[list[GroupSlice]]:
    """Put slices into batches of at most `most_tokens` ids, neighbours in length together; larger ones stand alone."""
    batches: list[list[GroupSlice]] = []
    room = 0
    for part in sorted(slices, key=lambda part: part.longest):
        if part.tokens > room:
            batches.append([])
            room = most_tokens
        batches[-1].append(part)
        room -= part.tokens
    return batches
