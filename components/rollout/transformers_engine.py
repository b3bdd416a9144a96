"""Rollouts from a Transformers model in this process: one static batch, its key-value cache, and a private generator.

For small models it is the quickest engine, and it is the reference that vLLM is tested against.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Self

import torch
from transformers import DynamicCache, PreTrainedModel

from components.policy.markers import Markers
from components.policy.prefix_attention import pad_left, run_prefix, share_prompts
from components.randomness import generator
from components.rollout.deadline import Deadline
from components.rollout.engine import Rollout, Sampling, check_request


class TransformersEngine:
    """Samples from `model` itself: trainer and sampler may share one module, and then new weights cost nothing."""

    def __init__(
        self, model: PreTrainedModel, markers: Markers, *, batch_rollouts: int, timeout_seconds: float = math.inf
    ) -> None:
        """batch_rollouts: the most rollouts sampled at once; at least one prompt's n always is.

        timeout_seconds: of one call.
        """
        self.model, self.timeout_seconds = model, timeout_seconds
        self.markers = markers
        self.batch_rollouts = batch_rollouts

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[list[Rollout]]:
        """As `RolloutEngine.generate`, in batches of at most batch_rollouts."""
        check_request(prompts, sampling, self.markers, self.model.config.max_position_embeddings)
        was_training = self.model.training
        self.model.eval()
        at_once = max(1, self.batch_rollouts // n)
        places = sampling.places or tuple(range(len(prompts)))
        groups: list[list[Rollout]] = []
        with Deadline("Transformers", self.timeout_seconds) as deadline:
            for first in range(0, len(prompts), at_once):
                some = slice(first, first + at_once)
                uniform = _uniform(places[some], n, sampling)
                rollouts = _Batch(self.model, self.markers, prompts[some], n, sampling, uniform).run(deadline)
                groups.extend(rollouts[i : i + n] for i in range(0, len(rollouts), n))
        self.model.train(was_training)
        return groups

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copy weights into the model, but for those that it shares with the trainer's."""
        own = self.model.state_dict()
        with torch.no_grad():
            for name, tensor in weights:
                if own[name].data_ptr() != tensor.data_ptr():
                    own[name].copy_(tensor)

    def sleep(self) -> None:
        """Nothing to give back: the model is the trainer's."""

    def close(self) -> None:
        """Nothing to give back: the model belongs to the caller."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _uniform(places: Sequence[int], n: int, sampling: Sampling) -> torch.Tensor:
    """A number in [0, 1) for every id that may be sampled, [rows, max_new_tokens]: drawn for each prompt by itself, so
    that its rollouts are the same in whatever company it is sampled."""
    shape = (n, sampling.max_new_tokens)
    numbers = [torch.rand(shape, generator=generator(sampling.seed, place), dtype=torch.float64) for place in places]
    return torch.cat(numbers)


class _Batch:
    """The rollouts of some prompts, one row each, sampled in step until every row has ended."""

    def __init__(
        self,
        model: PreTrainedModel,
        markers: Markers,
        prompts: Sequence[Sequence[int]],
        n: int,
        sampling: Sampling,
        uniform: torch.Tensor,
    ) -> None:
        self.model, self.sampling, self.uniform = model, sampling, uniform.to(model.device)
        self.prompts = [tuple(prompt) for prompt in prompts for _ in range(n)]
        device, rows = model.device, len(self.prompts)
        self.end = torch.tensor(markers.end_of_thinking, device=device)
        self.stop = torch.tensor(markers.end_of_turn, device=device)
        self.pad = markers.pad
        self.ids = torch.full((rows, sampling.max_new_tokens), markers.pad, device=device)
        self.logprobs = torch.zeros(rows, sampling.max_new_tokens, device=device)
        self.length = torch.zeros(rows, dtype=torch.long, device=device)
        self.rationale_length = torch.zeros_like(self.length)  # 0 while the rationale is open
        self.force_from = torch.full_like(self.length, sampling.max_new_tokens)  # where a forced marker begins
        self.stopped = torch.zeros(rows, dtype=torch.bool, device=device)
        self.rows = torch.arange(rows, device=device)  # the rollout that each row of the cache belongs to
        self.live = torch.ones_like(self.stopped)  # per row of the cache: whether its rollout goes on
        self._prefill(prompts, n)

    def run(self, deadline: Deadline) -> list[Rollout]:
        while True:
            deadline.check(f"{int(self.live.sum())} of {len(self.prompts)} rollouts were unfinished")
            tokens = self._sample()
            finished = len(self.live) - int(self.live.sum())
            if finished == len(self.live):
                return self._rollouts()
            # Dropping rows copies the cache, so it waits until a quarter of them can go.
            if finished * 4 >= len(self.live):
                tokens = tokens[self.live]
                self._drop_finished()
            self._forward(tokens)

    def _prefill(self, prompts: Sequence[Sequence[int]], n: int) -> None:
        """Run each prompt once, padded on the left, for its n rows together."""
        if share_prompts(self.model):
            self._share_prompts(prompts, n)
        else:
            self._repeat_prompts(prompts, n)

    def _share_prompts(self, prompts: Sequence[Sequence[int]], n: int) -> None:
        """The rows read the cache of their prompt, of which there is one; their own caches begin with its last id."""
        ids, mask = (tensor.to(self.model.device) for tensor in pad_left([prompt[:-1] for prompt in prompts], self.pad))
        group = torch.arange(len(prompts), device=ids.device).repeat_interleave(n)
        self.prefix = run_prefix(self.model, ids, mask, group) if ids.shape[1] else None
        self.cache, self.mask = DynamicCache(config=self.model.config), None
        self.position = mask.sum(1).repeat_interleave(n)
        self._forward(torch.tensor([prompt[-1] for prompt in prompts], device=ids.device).repeat_interleave(n))

    def _repeat_prompts(self, prompts: Sequence[Sequence[int]], n: int) -> None:
        """The rows get a copy of their prompt's cache each: for models whose layers cannot share."""
        ids, mask = (tensor.to(self.model.device) for tensor in pad_left(prompts, self.pad))
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=DynamicCache(config=self.model.config),
            use_cache=True,
            logits_to_keep=1,
        )
        self.prefix, self.cache = None, output.past_key_values
        self.cache.batch_repeat_interleave(n)
        self.mask = mask.repeat_interleave(n, 0)
        self.position = self.mask.sum(1)
        self.logits = output.logits[:, -1].repeat_interleave(n, 0)

    def _sample(self) -> torch.Tensor:
        """Put one more token on every live rollout: sampled, or the next id of a forced marker."""
        logprobs = self.logits.float().log_softmax(-1)
        probabilities = (logprobs / self.sampling.temperature).softmax(-1)
        tokens = self._draw(probabilities)
        rows = self.rows[self.live]
        at = self.length[rows]
        forced = at - self.force_from[rows]
        next_of_marker = self.end[forced.clamp(0, len(self.end) - 1)]
        is_forced = (forced >= 0) & (self.rationale_length[rows] == 0)
        tokens[self.live] = torch.where(is_forced, next_of_marker, tokens[self.live])
        self.ids[rows, at] = tokens[self.live]
        self.logprobs[rows, at] = torch.where(is_forced, 0, logprobs.gather(1, tokens[:, None])[self.live, 0])
        self.length[rows] = at + 1
        self.live[self.live.clone()] = ~self._ended(rows, tokens[self.live])
        return tokens

    def _draw(self, probabilities: torch.Tensor) -> torch.Tensor:
        """An id a row by inversion: the first whose cumulative probability exceeds the row's number."""
        cumulative = probabilities.cumsum(-1, dtype=torch.float64)
        number = self.uniform[self.rows].gather(1, self.length[self.rows, None].clamp(max=self.uniform.shape[1] - 1))
        # Of the sum rather than of 1, so that rounding cannot lead past the last id.
        return torch.searchsorted(cumulative, number * cumulative[:, -1:], right=True)[:, 0].clamp(
            max=probabilities.shape[1] - 1
        )

    def _ended(self, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Close rationales, begin to force those that must close, and tell which rollouts have ended, [rows]."""
        length, is_open = self.length[rows], self.rationale_length[rows] == 0
        forcing = self.force_from[rows] < length
        last = length[:, None] + torch.arange(-len(self.end), 0, device=length.device)
        is_marker = (last[:, 0] >= 0) & (self.ids[rows].gather(1, last.clamp(min=0)) == self.end).all(1)
        closes = is_open & torch.where(forcing, length == self.force_from[rows] + len(self.end), is_marker)
        self.rationale_length[rows] = torch.where(closes, length, self.rationale_length[rows])

        ends_turn = torch.isin(tokens, self.stop)
        must_close = is_open & ~closes & ~forcing & (ends_turn | (length >= self.sampling.rationale_budget))
        self.force_from[rows] = torch.where(must_close, length, self.force_from[rows])
        if self.sampling.answers:
            stopped = ends_turn & ~is_open
            ended = stopped | (length >= self.sampling.max_new_tokens)
        else:
            stopped, ended = closes & ~forcing, closes
        self.stopped[rows] = stopped
        return ended

    def _drop_finished(self) -> None:
        """Take the rows of ended rollouts out of the cache."""
        kept = self.live.nonzero()[:, 0]
        self.cache.batch_select_indices(kept)
        self.rows, self.live, self.position = self.rows[kept], self.live[kept], self.position[kept]
        self.prefix = self.prefix and self.prefix.select(kept)
        self.mask = self.mask if self.mask is None else self.mask[kept]

    def _forward(self, tokens: torch.Tensor) -> None:
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], 1)
        output = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.position[:, None],
            past_key_values=self.cache,
            use_cache=True,
            **({} if self.prefix is None else {"prefix": self.prefix}),
        )
        self.position = self.position + 1
        self.logits = output.logits[:, -1]

    def _rollouts(self) -> list[Rollout]:
        ids, logprobs = self.ids.tolist(), self.logprobs.tolist()
        lengths, rationales = self.length.tolist(), self.rationale_length.tolist()
        forced, stopped = self.force_from.tolist(), self.stopped.tolist()
        return [
            Rollout(
                prompt_ids=prompt,
                rationale_ids=tuple(ids[row][: rationales[row]]),
                answer_ids=tuple(ids[row][rationales[row] : lengths[row]]),
                logprobs=tuple(logprobs[row][: lengths[row]]),
                finish_reason="stop" if stopped[row] else "length",
                forced_end=max(0, rationales[row] - forced[row]),
            )
            for row, prompt in enumerate(self.prompts)
        ]
