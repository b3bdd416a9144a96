"""Log-probabilities of rationales and answers, with gradients: each prompt is run once and shared by its rollouts.

All rollouts of a group begin with the same prompt. Its keys and values are computed once, kept in the graph and read by
all rows of the group, so that its cost does not grow with M and its gradient is exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from components.errors import UserError
from components.policy.prefix_attention import pad_left, run_prefix, share_prompts

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
    suffix: [rows, S] the prompt's last id (all of the prompt where it is not shared), then rationale and answer, padded
        on the right.
    position: [rows, S] where each suffix id stands in its sequence.
    is_rationale, is_answer: [rows, S - 1] which ids of suffix[:, 1:] count towards which log-probability.
    """

    prefix: torch.Tensor
    prefix_mask: torch.Tensor
    group: torch.Tensor
    suffix: torch.Tensor
    position: torch.Tensor
    is_rationale: torch.Tensor
    is_answer: torch.Tensor


def collate(
    prompts: Sequence[Sequence[int]], groups: Sequence[Sequence[Row]], device: torch.device, *, share: bool = True
) -> RowBatch:
    """Pad prompts and their rows into tensors.

    share: False repeats the prompt in every row instead of sharing it, for models that cannot share.
    """
    rows = [(group, prompts[group], row) for group, members in enumerate(groups) for row in members]
    shared = [prompt[:-1] if share else () for prompt in prompts]
    lead = [prompt[len(shared[group]) :] for group, prompt, _ in rows]  # the prompt's ids that stand in the row
    prefix, prefix_mask = pad_left(shared)
    length = max(
        len(first) + len(row.rationale) + len(row.answer) for first, (_, _, row) in zip(lead, rows, strict=True)
    )
    suffix = torch.zeros(len(rows), length, dtype=torch.long)
    is_rationale = torch.zeros(len(rows), length - 1, dtype=torch.bool)
    is_answer = torch.zeros(len(rows), length - 1, dtype=torch.bool)
    for index, (first, (_, _, row)) in enumerate(zip(lead, rows, strict=True)):
        ids = [*first, *row.rationale, *row.answer]
        start, thought = len(first) - 1, len(first) - 1 + len(row.rationale)  # in terms of suffix[:, 1:]
        suffix[index, : len(ids)] = torch.tensor(ids)
        is_rationale[index, start : thought - row.forced_end] = True
        is_answer[index, thought : len(ids) - 1] = True
    begin = torch.tensor([len(shared[group]) for group, _, _ in rows])
    return RowBatch(
        prefix=prefix.to(device),
        prefix_mask=prefix_mask.to(device),
        group=torch.tensor([group for group, _, _ in rows], device=device),
        suffix=suffix.to(device),
        position=(begin[:, None] + torch.arange(length)).to(device),
        is_rationale=is_rationale.to(device),
        is_answer=is_answer.to(device),
    )


class Scorer(nn.Module):
    """A policy whose forward pass gives log-probabilities instead of logits; DeepSpeed wraps it as a whole."""

    def __init__(self, policy: PreTrainedModel) -> None:
        """policy: a model whose logits are what its head makes of its hidden states.

        Raises:
            UserError: they are not.
        """
        super().__init__()
        _check_head(policy)
        self.policy = policy
        self.shares = share_prompts(policy)

    def collate(self, prompts: Sequence[Sequence[int]], groups: Sequence[Sequence[Row]]) -> RowBatch:
        """`collate` on the policy's device, the prompts shared if the policy can."""
        return collate(prompts, groups, self.policy.device, share=self.shares)

    def forward(self, batch: RowBatch) -> torch.Tensor:
        """log p of every id of batch.suffix[:, 1:], [rows, S - 1] in float32 or better, zero where nothing counts."""
        prefix = None
        if batch.prefix.shape[1]:
            # Any other attention would take the prefix for an option it does not know and leave the prompt out.
            assert self.shares
            prefix = run_prefix(self.policy, batch.prefix, batch.prefix_mask, batch.group)
        # Padding stands behind every id that counts, so that causality alone keeps it out.
        hidden = self.policy.base_model(
            input_ids=batch.suffix, position_ids=batch.position, use_cache=False, prefix=prefix
        ).last_hidden_state
        counts = batch.is_rationale | batch.is_answer
        scored = self._token_logprobs(hidden[:, :-1][counts], batch.suffix[:, 1:][counts])
        return torch.zeros(counts.shape, dtype=scored.dtype, device=hidden.device).masked_scatter(counts, scored)

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
        logits = self.policy.lm_head(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(-1)


@torch.no_grad()
def _check_head(policy: PreTrainedModel) -> None:
    """Refuse models that scale or cap their logits behind the head (Gemma 2, Granite, Cohere)."""
    ids = torch.tensor([[0, 1]], device=policy.device)
    logits = policy(input_ids=ids, use_cache=False).logits
    plain = policy.lm_head(policy.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    if not torch.allclose(plain, logits, rtol=1e-3):
        raise UserError(
            f"the logits of {type(policy).__name__} are not those of its lm_head alone; choose a model that neither"
            " scales nor caps them, such as Qwen3."
        )


def sequence_logprobs(logprobs: torch.Tensor, batch: RowBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """log p of each row's rationale and of its answer, [rows] each in float64 nats: sums over ids, never means."""
    exact = logprobs.double()
    return (exact * batch.is_rationale).sum(1), (exact * batch.is_answer).sum(1)
