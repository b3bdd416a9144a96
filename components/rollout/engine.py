"""The one protocol behind which rollouts are sampled."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import torch

from components.errors import UserError
from components.policy.markers import Markers

Item = TypeVar("Item")


@dataclass(frozen=True)
class Rollout:
    """One sampled completion as token ids; text exists only for people and for answer matching.

    prompt_ids: the prompt, as given to the engine.
    rationale_ids: everything up to and including the end-of-thinking marker.
    answer_ids: what follows, with the end-of-turn token if it was sampled; empty when only rationales were asked for.
    logprobs: the sampling model's log p of every id of rationale_ids + answer_ids, in nats; at temperature 1, whatever
        the sampling's temperature was. 0 for forced ids, which were not sampled.
    finish_reason: "stop" when the model ended its turn (or its rationale, where only that was asked for), "length" when
        the budget ended it.
    forced_end: how many of the last rationale_ids were forced by the budget rather than sampled; these carry no score
        gradient.
    """

    prompt_ids: tuple[int, ...]
    rationale_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    forced_end: int


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    max_new_tokens: the most ids of rationale and answer together.
    answer_reserve: ids kept free for the answer: a rationale that has used max_new_tokens - answer_reserve ids without
        closing gets the end-of-thinking marker forced (the marker's ids count towards max_new_tokens).
    seed: one seed gives one result on one machine.
    places: of the prompts among all those of the step, where an engine is given only some of them: what is drawn for a
        prompt depends on seed and place. None numbers them from 0.
    answers: False stops every rollout behind its rationale; GARL and PAFT need no sampled answer.
    temperature: 1 in training, or a rationale is no sample of p(z given x).
    """

    max_new_tokens: int
    answer_reserve: int
    seed: int
    answers: bool = True
    temperature: float = 1.0
    places: tuple[int, ...] | None = None

    @property
    def rationale_budget(self) -> int:
        """The most sampled ids of a rationale, a sampled end marker included."""
        return self.max_new_tokens - self.answer_reserve


class PromptError(UserError):
    """A prompt that cannot be sampled; index is its place among those of the call."""

    def __init__(self, index: int, problem: str) -> None:
        super().__init__(f"prompt {index} {problem}")
        self.index = index


class Peers(Protocol):
    """The processes of a run, which sample at the same time, each its own prompts; training's Ranks are such."""

    rank: int  # this one's number, from 0
    size: int  # how many they are

    @property
    def first(self) -> bool:
        """Whether this process acts for all."""
        ...

    def share(self, item: Item) -> Item:
        """The first process's item, on every process; every process has to ask."""
        ...

    def merge(self, items: dict[int, Item]) -> list[Item]:
        """The items of all processes by their places, which are 0 and up; every process has to ask."""
        ...


class Alone:
    """A process without peers."""

    rank = 0
    size = 1
    first = True

    def share(self, item: Item) -> Item:
        """The item itself: nobody else asks."""
        return item

    def merge(self, items: dict[int, Item]) -> list[Item]:
        """The items by their places."""
        return [items[place] for place in sorted(items)]


class RolloutEngine(Protocol):
    """A sampler that can be given new weights. Use it as a context manager."""

    def generate(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[list[Rollout]]:
        """n rollouts for each prompt, in the order of the prompts.

        Raises:
            UserError: the request cannot be sampled.
            TemporaryError: the call's time is up, or the engine is gone.
        """
        ...

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take the trainer's weights (the items of its state_dict, tied ones included) without a restart.

        Every process of a run calls it at the same time, when none of them samples.
        """
        ...

    def sleep(self) -> None:
        """Give back what memory can be given back until load_weights is called again."""
        ...

    def close(self) -> None:
        """Give back all that the engine holds; it cannot be asked any more."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


def check_request(prompts: Sequence[Sequence[int]], sampling: Sampling, markers: Markers, context: int | None) -> None:
    """Refuse what no engine can sample.

    context: the most ids of prompt and completion that the model takes; None where it knows no limit.

    Raises:
        PromptError: a prompt is empty or too long.
        UserError: the budget has no room for rationale, marker and answer.
    """
    if sampling.rationale_budget < 1:
        raise UserError(
            f"rollout.answer_reserve = {sampling.answer_reserve} leaves no room for a rationale;"
            f" keep it below rollout.max_new_tokens = {sampling.max_new_tokens}."
        )
    if sampling.answer_reserve <= len(markers.end_of_thinking):
        raise UserError(
            f"rollout.answer_reserve = {sampling.answer_reserve} leaves no room for an answer behind the"
            f" {len(markers.end_of_thinking)} token(s) of the end-of-thinking marker; raise it."
        )
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise PromptError(index, "has no tokens; remove the example or give it a prompt.")
        if context is not None and len(prompt) + sampling.max_new_tokens > context:
            raise PromptError(
                index,
                f"has {len(prompt)} tokens; with rollout.max_new_tokens = {sampling.max_new_tokens} it"
                f" exceeds the model's context of {context}: shorten the prompt or lower the budget.",
            )
