"""Prompts that fit into the model's context: how long they are, and what becomes of those that are too long."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Protocol

from components.config import TaskSettings
from components.data.example import Example
from components.errors import UserError

BATCH = 256  # examples whose tokens are counted at once


class Tokens(Protocol):
    """Counts tokens for the model that will read the texts (components.policy.tokens).

    context: the most tokens of prompt and completion together; None where the model knows no limit.
    """

    context: int | None

    def prompts(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each prompt."""
        ...

    def at_most(self, prompt: str) -> int:
        """A number of tokens that the prompt does not exceed, quick to tell."""
        ...

    def answers(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each gold answer."""
        ...


@dataclass
class Lengths:
    """What was found about a split's texts; the counts are of tokens."""

    prompts: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    shortened: int = 0  # examples whose prompt lost distractor paragraphs
    too_long: int = 0  # examples left out


def longest_prompt(settings: TaskSettings, context: int | None, budget: int) -> int | None:
    """The most tokens of a prompt: task.max_prompt_tokens, and what `budget` new tokens leave of the context.

    Raises:
        UserError: they leave nothing.
    """
    if context is None:
        return settings.max_prompt_tokens
    if budget >= context:
        raise UserError(
            f"rollout.max_new_tokens = {budget} leaves nothing of the model's context of {context} tokens to a prompt;"
            " lower it."
        )
    return min(context - budget, settings.max_prompt_tokens or context)


def fit(
    examples: Iterable[Example],
    tokens: Tokens,
    most: int | None,
    *,
    shorten: bool,
    sample: Callable[[Example], bool],
    found: Lengths,
) -> Iterator[Example]:
    """The examples whose prompts have at most `most` tokens, some of them made so; `found` learns the rest.

    shorten: leave distractor paragraphs out of a prompt that is too long, the longest first; never a supporting one.
        What is still too long then, or has no paragraphs, is left out.
    sample: whose prompts are counted for the statistics even where their size alone tells that they fit. Counting
        every one would take longer than everything else together.
    """  # fmt: skip
    remaining = iter(examples)
    while batch := list(islice(remaining, BATCH)):
        counted = [item for item in batch if sample(item) or (most is not None and tokens.at_most(item.prompt) > most)]
        lengths = dict(zip(map(id, counted), tokens.prompts([item.prompt for item in counted]), strict=True))
        kept = []
        for item in batch:
            length = lengths.get(id(item), 0)
            fitting = item
            if most is not None and length > most:
                fitting, length = _shortened(item, length, tokens, most) if shorten else (None, length)
                if fitting is None:
                    found.too_long += 1
                    continue
                found.shortened += 1
            if sample(item):
                found.prompts.append(length)
            kept.append(fitting)
        found.answers += tokens.answers([item.answers[0] for item in kept])
        yield from kept


def _shortened(example: Example, length: int, tokens: Tokens, most: int) -> tuple[Example | None, int]:
    """The example with as few distractors left out as make it fit, and its length; None where none would do."""
    sizes = zip(tokens.prompts(example.distractors), example.distractors, strict=True) if example.distractors else ()
    prompt, expected = example.prompt, length
    for size, passage in sorted(sizes, reverse=True):
        prompt, expected = prompt.replace(f"{passage}\n\n", "", 1), expected - size
        if expected <= most:
            [length] = tokens.prompts([prompt])
            if length <= most:
                return replace(example, prompt=prompt), length
    return None, length


def statistics(lengths: Sequence[int]) -> dict[str, int]:
    """Minimum, median, 95th percentile and maximum, by rank."""
    ranked = sorted(lengths)
    ranks = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
    return {name: ranked[max(0, math.ceil(rank * len(ranked)) - 1)] for name, rank in ranks.items()}
