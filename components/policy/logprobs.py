"""Log-probabilities of rationales and answers, with gradients: each prompt is run once and shared by its rollouts.

Groups are packed: their prompts and rows lie behind each other in one sequence of ids, so that nothing is padded, and
all rows of a group attend to the one copy of its prompt (`packed_attention`). Rows of a group that read the same ids
are run once, however many there are. Gradients are exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from components.errors import UserError
from components.policy.model import head_width
from components.policy.packed_attention import Layout, make_layout, takes_varlen
from components.policy.prefix_attention import share_prompts
from components.policy.sharded import whole

LOGITS_AT_ONCE = 2**25  # how many exist at the same time: 128 MiB in float32


@dataclass(frozen=True)
class Row:
    """What is scored behind a prompt: a rationale and an answer, the gold one or the sampled one."""

    rationale: tuple[int, ...]
    answer: tuple[int, ...]
    forced_end: int  # how many of the last rationale ids were forced; they carry no log-probability

    @property
    def read(self) -> tuple[int, ...]:
        """The ids that the model reads: the last one is only predicted."""
        return (*self.rationale, *self.answer)[:-1]


@dataclass(frozen=True)
class RowBatch:
    """The tensors of some groups' rows, T of whose ids are scored: each row's, in order.

    ids, position: [1, N] prompts and rows packed; [rows, S], padded on the right, where the prompt is not shared.
    layout: what attends to what in a packed sequence; None where the prompt is not shared.
    before: [U] the place of the id before each scored one, among all ids, flattened.
    target: [U] the scored ids, those that rows have in common once.
    scored: [T] which of the U each row's ids are.
    row: [T] the row of each.
    is_answer: [T] whether it counts towards the answer's log-probability or the rationale's.
    rows: how many there are.
    padding: the share of places that hold no id.
    """

    ids: Tensor
    position: Tensor
    layout: Layout | None
    before: Tensor
    target: Tensor
    scored: Tensor
    row: Tensor
    is_answer: Tensor
    rows: int
    padding: float


def collate(
    prompts: Sequence[Sequence[int]],
    groups: Sequence[Sequence[Row]],
    device: torch.device,
    *,
    share: bool = True,
    varlen: bool = False,
) -> RowBatch:
    """Put prompts and their rows into tensors.

    share: False repeats the prompt in every row instead of sharing it, for models that cannot share.
    varlen: for attention of variable length.
    """
    reads = [[row.read for row in rows] for rows in groups]
    lengths = [len(prompt) for prompt in prompts]
    width = max(length + max(map(len, members)) for length, members in zip(lengths, reads, strict=True))
    ids, position, scored, distinct = [], [], [], []
    place, count = 0, 0
    for prompt, rows, members in zip(prompts, groups, reads, strict=True):
        last = place + len(prompt) - 1  # the place of the prompt's last id
        starts: dict[tuple[int, ...], int] = {}  # the place of the first id of what a row reads
        if share:
            ids.append(prompt)
            position.append(np.arange(len(prompt)))
            place += len(prompt)
        for row, read in zip(rows, members, strict=True):
            if not share:
                last, starts[read] = place + len(prompt) - 1, place + len(prompt)
                ids += [prompt, read, [0] * (width - len(prompt) - len(read))]
                position.append(np.arange(width))
                place += width
            elif read not in starts:
                starts[read] = place
                ids.append(read)
                position.append(np.arange(len(prompt), len(prompt) + len(read)))
                place += len(read)
            scored.append(_scored(row, starts[read], last, count))
            count += 1
        distinct.append([len(read) for read in starts])
    layout = make_layout(lengths, distinct, device, varlen=varlen) if share else None
    places = sum(length * len(members) + sum(map(len, members)) for length, members in zip(lengths, reads, strict=True))
    shape = (1, -1) if share else (count, width)
    before, target, owner, is_answer = np.concatenate(scored, axis=1)
    before, target, numbers = _once(before, target)
    return RowBatch(
        ids=torch.from_numpy(np.fromiter(chain.from_iterable(ids), np.int64)).to(device).view(shape),
        position=torch.from_numpy(np.concatenate(position)).to(device).view(shape),
        layout=layout,
        before=torch.from_numpy(before).to(device),
        target=torch.from_numpy(target).to(device),
        scored=torch.from_numpy(numbers).to(device),
        row=torch.from_numpy(owner).to(device),
        is_answer=torch.from_numpy(is_answer == 1).to(device),
        rows=count,
        padding=layout.padding if layout else 1 - places / (count * width),
    )


def _scored(row: Row, start: int, last: int, number: int) -> np.ndarray:
    """[4, its scored ids]: the place before each, the id, the row's number, and whether it is the answer's.

    start: the place of the first id that the row reads; last: that of the prompt's last id.
    """
    thought, continued = len(row.rationale), np.array((*row.rationale, *row.answer), dtype=np.int64)
    index = np.delete(np.arange(len(continued)), slice(thought - row.forced_end, thought))
    before = np.where(index > 0, start + index - 1, last)
    return np.stack([before, continued[index], np.full(len(index), number), index >= thought])


def _once(before: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct pairs of place and id, [U] each, as they first come, and which of them each one is, [T]."""
    pairs = before * (target.max(initial=0) + 1) + target
    _, first, number = np.unique(pairs, return_index=True, return_inverse=True)
    order = first.argsort()
    return before[first[order]], target[first[order]], order.argsort()[number]


class Scorer(nn.Module):
    """A policy whose forward pass gives log-probabilities instead of logits; DeepSpeed wraps it as a whole."""

    def __init__(self, policy: PreTrainedModel) -> None:
        """policy: a model whose logits are what its head makes of its hidden states.

        Raises:
            UserError: they are not.
        """
        super().__init__()
        if policy.device.type != "meta":  # where there are no numbers to compare
            _check_head(policy)
        self.policy = policy
        self.shares = share_prompts(policy)
        self.varlen = takes_varlen(policy.device, policy.dtype, head_width(policy.config))

    def collate(self, prompts: Sequence[Sequence[int]], groups: Sequence[Sequence[Row]]) -> RowBatch:
        """`collate` on the policy's device, the prompts shared if the policy can."""
        return collate(prompts, groups, self.policy.device, share=self.shares, varlen=self.varlen)

    def forward(self, batch: RowBatch) -> Tensor:
        """log p of every scored id, [T] in float32 or better."""
        # A mask of four dimensions is taken for a finished one, and none is made; the layout says it all. Without a
        # layout padding stands behind every id that counts, so that causality alone keeps it out.
        packed = {"attention_mask": batch.ids.new_zeros(1, 1, 1, 1), "layout": batch.layout} if batch.layout else {}
        hidden = self.policy.base_model(
            input_ids=batch.ids, position_ids=batch.position, use_cache=False, **packed
        ).last_hidden_state
        return self._token_logprobs(hidden.flatten(0, 1)[batch.before], batch.target)[batch.scored]

    def _token_logprobs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """log p of `targets`, [tokens], from hidden states, [tokens, width]; logits exist for one chunk at a time."""
        chunk = max(1, LOGITS_AT_ONCE // self.policy.config.vocab_size)
        pieces = []
        for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            if len(hidden) > chunk and torch.is_grad_enabled():
                pieces.append(checkpoint(self._chunk_logprobs, h, t, use_reentrant=False))
            else:
                pieces.append(self._chunk_logprobs(h, t))
        return torch.cat(pieces)

    def _chunk_logprobs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = self.policy.lm_head(hidden)
        return _LogSoftmaxAt.apply(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets)


class _LogSoftmaxAt(torch.autograd.Function):
    """log-softmax of [tokens, vocabulary] at one id each, [tokens]; the gradient is written over the logits."""

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor) -> Tensor:
        log_sum = logits.logsumexp(-1)
        ctx.save_for_backward(logits, targets, log_sum)
        return logits.gather(1, targets[:, None])[:, 0] - log_sum

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        logits, targets, log_sum = ctx.saved_tensors
        logits.sub_(log_sum[:, None]).exp_().mul_(-gradient[:, None])
        return logits.scatter_add_(1, targets[:, None], gradient[:, None]), None


@torch.no_grad()
def _check_head(policy: PreTrainedModel) -> None:
    """Refuse models that scale or cap their logits behind the head (Gemma 2, Granite, Cohere).

    The layers stand aside for hidden states of our own: the head alone is looked at, however large and sharded the
    rest.
    """
    weight = policy.lm_head.weight
    width = getattr(weight, "ds_shape", weight.shape)[1]
    hidden = torch.linspace(-99, 99, 2 * width).view(1, 2, width).to(weight)
    body, standing_in = policy.base_model, BaseModelOutputWithPast(last_hidden_state=hidden)
    with whole([weight]):
        body.forward = lambda *_, **__: standing_in
        try:
            logits = policy(input_ids=torch.zeros(1, 2, dtype=torch.long, device=weight.device)).logits
            plain = policy.lm_head(hidden)
        finally:
            del body.forward
    if not torch.allclose(plain, logits, rtol=1e-3):
        raise UserError(
            f"the logits of {type(policy).__name__} are not those of its lm_head alone; choose a model that neither"
            " scales nor caps them, such as Qwen3."
        )


def sequence_logprobs(logprobs: Tensor, batch: RowBatch) -> tuple[Tensor, Tensor]:
    """log p of each row's rationale and of its answer, [rows] each in float64 nats: sums over ids, never means."""
    exact = logprobs.double()
    nothing = exact.new_zeros(batch.rows)
    rationale, answer = exact * ~batch.is_answer, exact * batch.is_answer
    return nothing.index_add(0, batch.row, rationale), nothing.index_add(0, batch.row, answer)
