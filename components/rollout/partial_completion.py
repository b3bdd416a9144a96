"""A rollout in the making: what has been sampled so far, and what has to be sampled next."""

from collections.abc import Sequence

from components.policy.markers import Markers
from components.rollout.engine import Rollout, Sampling


class PartialCompletion:
    """For engines that are asked for ids by request: a request ends at a stop id or at a length.

    The rationale closes where the marker is first complete, and the answer may follow in the same request. Where it
    does not close in time (the budget is used up, the turn ends) the marker's ids are put behind it; nothing has to be
    computed for them, for they carry no gradient.
    """

    def __init__(self, prompt: tuple[int, ...], markers: Markers, sampling: Sampling) -> None:
        self.prompt, self.markers, self.sampling = prompt, markers, sampling
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.rationale_length: int | None = None  # None while it is open
        self.forced_end = 0

    def next_request(self) -> tuple[int, tuple[int, ...]] | None:
        """How many ids to sample behind prompt and ids at most, and which of them stop; None when all is done."""
        sampling, length = self.sampling, len(self.ids)
        if self.rationale_length is None:
            # A marker is complete behind its last id. That id alone is no marker if there are more; then the rationale
            # goes on with another request, and each id is still drawn from the model's own distribution.
            marker_ends = () if sampling.answers else self.markers.end_of_thinking[-1:]
            return sampling.rationale_budget - length, (*marker_ends, *self.markers.end_of_turn)
        if not sampling.answers or length == sampling.max_new_tokens or self._turn_ended():
            return None
        return sampling.max_new_tokens - length, self.markers.end_of_turn

    def extend(self, ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """Put what was sampled on the rollout, and see whether the rationale is closed or must be."""
        unseen = max(0, len(self.ids) - len(self.markers.end_of_thinking) + 1)
        self.ids += ids
        self.logprobs += logprobs
        if self.rationale_length is not None:
            return
        self.rationale_length = self._end_of_marker(unseen)
        out_of_budget = len(self.ids) >= self.sampling.rationale_budget
        if self.rationale_length is None and (out_of_budget or self.ids[-1] in self.markers.end_of_turn):
            self.forced_end = len(self.markers.end_of_thinking)
            self.ids += self.markers.end_of_thinking
            self.logprobs += [0.0] * self.forced_end
            self.rationale_length = len(self.ids)

    def rollout(self) -> Rollout:
        """What has been sampled, as a finished rollout: once `next_request` has no more to ask for."""
        stopped = self._turn_ended() if self.sampling.answers else self.forced_end == 0
        return Rollout(
            prompt_ids=self.prompt,
            rationale_ids=tuple(self.ids[: self.rationale_length]),
            answer_ids=tuple(self.ids[self.rationale_length :]),
            logprobs=tuple(self.logprobs),
            finish_reason="stop" if stopped else "length",
            forced_end=self.forced_end,
        )

    def _turn_ended(self) -> bool:
        return len(self.ids) > (self.rationale_length or 0) and self.ids[-1] in self.markers.end_of_turn

    def _end_of_marker(self, start: int) -> int | None:
        """Where the first complete marker that begins at `start` or later ends."""
        marker = self.markers.end_of_thinking
        for first in range(start, len(self.ids) - len(marker) + 1):
            if self.ids[first] == marker[0] and tuple(self.ids[first : first + len(marker)]) == marker:
                return first + len(marker)
        return None
