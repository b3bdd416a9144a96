"""Log-probabilities of rationales and answers, with gradients: each prompt is run once and shared by its rollouts.

All rollouts of a group begin with the same prompt. The prompt's key-value cache is computed once, kept in the graph and
repeated for the group's rows, so that its cost does not grow with M and its gradient is exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, PreTrainedModel

VOCABULARY_CHUNK = 2048  # tokens whose logits over the whole vocabulary exist at the same time


@dataclass(frozen=True)
class Row:
    """What is scored behind a prompt: a rationale and an answer, the gold one or the sampled one."""

    rationale: tuple[int, ...]
    answer: tuple[int, ...]
    forced_end: int  # how many of the last rationale ids were forced; they carry no log-probability


@dataclass(frozen=True)
class RowBatch:
    """The tensors of some groups' rows.

    prefix, prefix_mask: [groups, P] the prompts without their last id, padded on the left.
    group: [rows] the group of each row.
    suffix: [rows, S] the prompt's last id, then rationale and answer, padded on the right.
    position: [rows, S] where each suffix id stands in its sequence.
    is_rationale, is_answer: [rows, S - 1] which ids of suffix[:, 1:] count towards which log-probability.
    """

    prefix: torch.Tensor
    prefix_mask: torch.Tensor
    group: torch.Tensor
    suffix: torch.Tensor
    suffix_mask: torch.Tensor
    position: torch.Tensor
    is_rationale: torch.Tensor
    is_answer: torch.Tensor


def collate(prompts: Sequence[Sequence[int]], groups: Sequence[Sequence[Row]], device: torch.device) -> RowBatch:
    """Pad prompts and their rows into tensors."""
    rows = [(group, prompts[group], row) for group, members in enumerate(groups) for row in members]
    width = max(len(prompt) for prompt in prompts) - 1
    length = 1 + max(len(row.rationale) + len(row.answer) for _, _, row in rows)
    prefix = torch.zeros(len(prompts), width, dtype=torch.long)
    prefix_mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for index, prompt in enumerate(prompts):
        prefix[index, width - len(prompt) + 1 :] = torch.tensor(prompt[:-1])
        prefix_mask[index, width - len(prompt) + 1 :] = 1
    suffix = torch.zeros(len(rows), length, dtype=torch.long)
    suffix_mask = torch.zeros(len(rows), length, dtype=torch.long)
    is_rationale = torch.zeros(len(rows), length - 1, dtype=torch.bool)
    is_answer = torch.zeros(len(rows), length - 1, dtype=torch.bool)
    start = torch.tensor([len(prompt) - 1 for _, prompt, _ in rows])
    for index, (_, prompt, row) in enumerate(rows):
        thought, end = len(row.rationale), len(row.rationale) + len(row.answer)
        suffix[index, : end + 1] = torch.tensor([prompt[-1], *row.rationale, *row.answer])
        suffix_mask[index, : end + 1] = 1
        is_rationale[index, : thought - row.forced_end] = True
        is_answer[index, thought:end] = True
    return RowBatch(
        prefix=prefix.to(device),
        prefix_mask=prefix_mask.to(device),
        group=torch.tensor([group for group, _, _ in rows], device=device),
        suffix=suffix.to(device),
        suffix_mask=suffix_mask.to(device),
        position=(start[:, None] + torch.arange(length)).to(device),
        is_rationale=is_rationale.to(device),
        is_answer=is_answer.to(device),
    )


class Scorer(nn.Module):
    """A policy whose forward pass gives log-probabilities instead of logits; DeepSpeed wraps it as a whole."""

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, batch: RowBatch) -> torch.Tensor:
        """log p of every id of batch.suffix[:, 1:], [rows, S - 1] in float32, zero where nothing counts."""
        cache, mask = None, batch.suffix_mask
        if batch.prefix.shape[1]:
            cache = DynamicCache(config=self.policy.config)
            self.policy.model(
                input_ids=batch.prefix,
                attention_mask=batch.prefix_mask,
                position_ids=(batch.prefix_mask.cumsum(1) - 1).clamp(min=0),
                past_key_values=cache,
                use_cache=True,
            )
            cache.batch_select_indices(batch.group)
            mask = torch.cat([batch.prefix_mask[batch.group], batch.suffix_mask], 1)
        hidden = self.policy.model(
            input_ids=batch.suffix, attention_mask=mask, position_ids=batch.position, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state
        counts = batch.is_rationale | batch.is_answer
        logprobs = torch.zeros(counts.shape, dtype=torch.float32, device=hidden.device)
        return logprobs.masked_scatter(counts, self._token_logprobs(hidden[:, :-1][counts], batch.suffix[:, 1:][counts]))

    def _token_logprobs(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """log p of `targets`, [tokens], from hidden states, [tokens, width]; logits exist for one chunk at a time."""
        pieces = []
        for h, t in zip(hidden.split(VOCABULARY_CHUNK), targets.split(VOCABULARY_CHUNK), strict=True):
            if len(hidden) > VOCABULARY_CHUNK and torch.is_grad_enabled():
                pieces.append(checkpoint(self._chunk_logprobs, h, t, use_reentrant=False))
            else:
                pieces.append(self._chunk_logprobs(h, t))
        return torch.cat(pieces)

    def _chunk_logprobs(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self.policy.lm_head(hidden).float()
        return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(-1)


def sequence_logprobs(logprobs: torch.Tensor, batch: RowBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """log p of each row's rationale and of its answer, [rows] each in float64 nats: sums over ids, never means."""
    exact = logprobs.double()
    return (exact * batch.is_rationale).sum(1), (exact * batch.is_answer).sum(1)
