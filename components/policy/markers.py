"""The token ids that structure what a policy writes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Markers:
    """The token ids that structure a completion, fixed by the tokenizer.

    end_of_thinking: the marker that closes a rationale; one id or several.
    end_of_turn: any of these ids ends the answer; the first is the one put behind a gold answer.
    pad: fills batches; never a part of a rollout.
    """

    end_of_thinking: tuple[int, ...]
    end_of_turn: tuple[int, ...]
    pad: int
