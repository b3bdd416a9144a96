"""Attention over packed groups: prompts and their rows lie behind each other in one sequence of ids, without padding.

A row (a rollout) attends to its own ids so far and to its group's prompt, of which there is one copy. There are two
ways to the same numbers, and neither keeps scores.

In half precision on a GPU all sequences go through one call of PyTorch's variable-length attention, whose queries may
be fewer than their keys: a row's keys are the prompt's and its own, gathered for the call.

Elsewhere the two parts are computed apart, each by PyTorch's fused kernel, and merged by their log-sum-exps. With the
merged output and log-sum-exp the kernels' backward passes give the exact gradients of the parts, as in Ring Attention
(Liu et al. 2023, https://arxiv.org/abs/2310.01889).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

PADDING = 0.1  # the most of a bucket's places that stay empty


@dataclass(frozen=True)
class Bucket:
    """Sequences of about one length, which attend to themselves.

    index: [sequences, L] the places of their ids in the packed sequence; padding repeats place 0.
    filled: [sequences, L] which of them are no padding; None where all are.
    """

    index: Tensor
    filled: Tensor | None


@dataclass(frozen=True)
class Varlen:
    """Every sequence, prompts and rows, as variable-length attention takes them.

    keys: [K] the places of all sequences' keys in the packed sequence: a prompt's own, and a row's prompt and own.
    query_ends, key_ends: [sequences + 1] in int32, 0 and where each one's queries, in packed order, and its keys end.
    most_queries, most_keys: of a sequence.
    """

    keys: Tensor
    query_ends: Tensor
    key_ends: Tensor
    most_queries: int
    most_keys: int


@dataclass(frozen=True)
class Layout:
    """What attends to what in a packed sequence of N ids.

    buckets: every sequence, prompts and rows, in one of them.
    shared: for each group where its rows and where its prompt lie, which the rows attend to as well.
    varlen: instead of these two, where attention is of variable length.
    padding: the share of empty places in the buckets.
    """

    buckets: list[Bucket]
    shared: list[tuple[slice, slice]]
    varlen: Varlen | None
    padding: float


def takes_varlen(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether PyTorch's variable-length attention takes heads of this width."""
    return device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) and width <= 256 and width % 8 == 0


def make_layout(
    prompts: Sequence[int], rows: Sequence[Sequence[int]], device: torch.device, *, varlen: bool = False
) -> Layout:
    """Lay out groups from lengths: each one's prompt, and its rows behind it; lengths may be zero.

    varlen: for attention of variable length.
    """
    if varlen:
        return Layout([], [], _make_varlen(prompts, rows, device), 0.0)
    spans, shared, place = [], [], 0
    for prompt, lengths in zip(prompts, rows, strict=True):
        behind, end = place + prompt, place + prompt + sum(lengths)
        if prompt and end > behind:
            shared.append((slice(behind, end), slice(place, behind)))
        for length in (prompt, *lengths):
            if length:
                spans.append((length, place))
            place += length
    buckets: list[list[tuple[int, int]]] = []
    for length, start in sorted(spans, reverse=True):
        most, filled = (buckets[-1][0][0], sum(n for n, _ in buckets[-1])) if buckets else (0, 0)
        if not buckets or filled + length < (1 - PADDING) * most * (len(buckets[-1]) + 1):
            buckets.append([])
        buckets[-1].append((length, start))
    places = sum(bucket[0][0] * len(bucket) for bucket in buckets)
    return Layout([_bucket(bucket, device) for bucket in buckets], shared, None, 1 - place / places)


def _make_varlen(prompts: Sequence[int], rows: Sequence[Sequence[int]], device: torch.device) -> Varlen:
    keys, queries, lengths, place = [], [0], [0], 0
    for prompt, members in zip(prompts, rows, strict=True):
        shared = torch.arange(place, place + prompt)
        for number, length in enumerate((prompt, *members)):
            if length:
                own = torch.arange(place, place + length)
                keys += [shared, own] if number else [own]
                queries.append(length)
                lengths.append(prompt + length if number else length)
            place += length
    ends = (torch.tensor(sizes).cumsum(0).int().to(device) for sizes in (queries, lengths))
    return Varlen(torch.cat(keys).to(device), *ends, max(queries), max(lengths))


def _bucket(spans: list[tuple[int, int]], device: torch.device) -> Bucket:
    lengths, starts = torch.tensor(spans).T[:, :, None]
    offset = torch.arange(spans[0][0])
    filled = offset < lengths
    index = torch.where(filled, starts + offset, 0).to(device)
    return Bucket(index, None if bool(filled.all()) else filled.to(device))


def attend_packed(query: Tensor, key: Tensor, value: Tensor, scaling: float, layout: Layout) -> Tensor:
    """query: [1, heads, N, width]; key, value: [1, key-value heads, N, width]. Returns [1, N, heads, width]."""
    by_place = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    if layout.varlen is not None:
        return _attend_varlen(*by_place, scaling, layout.varlen)[None]
    return _PackedAttention.apply(*by_place, scaling, layout)[None]


def _attend_varlen(query: Tensor, key: Tensor, value: Tensor, scaling: float, layout: Varlen) -> Tensor:
    """query: [N, heads, width]; key, value: [N, key-value heads, width]. Returns [N, heads, width]."""
    keys, values = (_Gather.apply(tensor, layout.keys) for tensor in (key, value))
    # With this window the last query sees all keys, and each one before it one key less.
    output = varlen_attn(
        query.contiguous(), keys, values, layout.query_ends, layout.key_ends, layout.most_queries, layout.most_keys,
        scale=scaling, window_size=(-1, 0), enable_gqa=True,
    )  # fmt: skip
    assert isinstance(output, Tensor)  # and not its log-sum-exp as well, which was not asked for
    return output


class _Gather(torch.autograd.Function):
    """tensor[index]; on the way back the many gradients of a prompt's place are added up in float32."""

    @staticmethod
    def forward(ctx, tensor: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.places = len(tensor)
        return tensor[index]

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        (index,) = ctx.saved_tensors
        total = torch.promote_types(gradient.dtype, torch.float32)
        places = gradient.new_zeros(ctx.places, *gradient.shape[1:], dtype=total)
        return places.index_add_(0, index, gradient.to(total)).to(gradient.dtype), None


class _PackedAttention(torch.autograd.Function):
    """query: [N, heads, width]; key, value: [N, key-value heads, width]."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, scaling: float, layout: Layout) -> Tensor:
        heads = query.shape[1]
        repeat = heads // key.shape[1]
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        log_sum = query.new_empty(query.shape[:2], dtype=torch.promote_types(query.dtype, torch.float32))
        for bucket in layout.buckets:
            own = [_rows(tensor, bucket, times) for tensor, times in ((query, 1), (key, repeat), (value, repeat))]
            part, part_sum = _attention(*own, scaling, causal=True)
            _put(output, bucket, part.transpose(1, 2))
            _put(log_sum, bucket, part_sum.transpose(1, 2))
        for rows, prompt in layout.shared:
            shared = (_fold(query[rows], repeat), _heads_first(key[prompt]), _heads_first(value[prompt]))
            part, part_sum = _attention(*shared, scaling, causal=False)
            part, part_sum = _unfold(part, repeat), _unfold(part_sum[..., None], repeat)[..., 0]
            both = torch.logaddexp(log_sum[rows], part_sum)
            own_share = (log_sum[rows] - both).exp()[..., None].to(output.dtype)
            prompt_share = (part_sum - both).exp()[..., None].to(output.dtype)
            output[rows] = output[rows] * own_share + part * prompt_share
            log_sum[rows] = both
        ctx.save_for_backward(query, key, value, output, log_sum)
        ctx.scaling, ctx.layout = scaling, layout
        return output

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        query, key, value, output, log_sum = ctx.saved_tensors
        repeat = query.shape[1] // key.shape[1]
        to_query, to_key, to_value = (
            torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (query, key, value)
        )
        for bucket in ctx.layout.buckets:
            own = [_rows(tensor, bucket, times) for tensor, times in ((query, 1), (key, repeat), (value, repeat))]
            given, made = _rows(gradient, bucket), _rows(output, bucket)
            sums = log_sum[bucket.index].transpose(1, 2)
            if bucket.filled is not None:  # what stands in padding has no weight and no gradient
                given = given * bucket.filled[:, None, :, None]
                sums = sums.masked_fill(~bucket.filled[:, None], torch.inf)
            q, k, v = _attention_backward(given, *own, made, sums, ctx.scaling, causal=True)
            _put(to_query, bucket, q.transpose(1, 2))
            _put(to_key, bucket, k.transpose(1, 2).unflatten(2, (-1, repeat)).sum(3))
            _put(to_value, bucket, v.transpose(1, 2).unflatten(2, (-1, repeat)).sum(3))
        for rows, prompt in ctx.layout.shared:
            shared = (_fold(query[rows], repeat), _heads_first(key[prompt]), _heads_first(value[prompt]))
            given, made = _fold(gradient[rows], repeat), _fold(output[rows], repeat)
            sums = _fold(log_sum[rows][..., None], repeat)[..., 0]
            q, k, v = _attention_backward(given, *shared, made, sums, ctx.scaling, causal=False)
            to_query[rows] += _unfold(q, repeat)
            to_key[prompt] += k[0].transpose(0, 1)
            to_value[prompt] += v[0].transpose(0, 1)
        return to_query, to_key, to_value, None, None


def _rows(tensor: Tensor, bucket: Bucket, repeat: int = 1) -> Tensor:
    """[N, heads, width] to [sequences, heads * repeat, L, width]."""
    gathered = tensor[bucket.index]
    return (gathered if repeat == 1 else gathered.repeat_interleave(repeat, 2)).transpose(1, 2)


def _put(target: Tensor, bucket: Bucket, values: Tensor) -> None:
    """Write [sequences, L, ...] to its places in [N, ...]."""
    if bucket.filled is None:
        target[bucket.index] = values
    else:
        target[bucket.index[bucket.filled]] = values[bucket.filled]


def _fold(tensor: Tensor, repeat: int) -> Tensor:
    """[n, heads, width] to [1, key-value heads, repeat * n, width]: queries that read one key-value head in a row."""
    return tensor.unflatten(1, (-1, repeat)).permute(1, 2, 0, 3).flatten(1, 2)[None]


def _unfold(tensor: Tensor, repeat: int) -> Tensor:
    """The way back: [1, key-value heads, repeat * n, width] to [n, heads, width]."""
    return tensor[0].unflatten(1, (repeat, -1)).permute(2, 0, 1, 3).flatten(1, 2)


def _heads_first(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1)[None]


def _attention(query: Tensor, key: Tensor, value: Tensor, scaling: float, *, causal: bool) -> tuple[Tensor, Tensor]:
    """Output [b, heads, L, width] and log-sum-exp [b, heads, L] of attention."""
    if _is_fused(query):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scaling)
    scores = _scores(query, key, scaling, causal)
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


def _attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, log_sum: Tensor, scaling: float,
    *, causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of query, key and value; output and log_sum may be those of a softmax over more keys than these."""
    if _is_fused(query):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, query, key, value, output, log_sum, 0.0, causal, scale=scaling
        )
    weights = (_scores(query, key, scaling, causal) - log_sum[..., None]).exp()
    to_weights = gradient @ value.transpose(2, 3) - (gradient * output).sum(-1, keepdim=True)
    to_scores = weights * to_weights * scaling
    return to_scores @ key, to_scores.transpose(2, 3) @ query, weights.transpose(2, 3) @ gradient


def _is_fused(query: Tensor) -> bool:
    """Whether the CPU's fused kernel takes these queries; plain arithmetic stands in elsewhere, as in float32 on a GPU.

    Without numbers, on the meta device, no kernel runs, and the shapes are those of the fused one.
    """
    return query.device.type in ("cpu", "meta")


def _scores(query: Tensor, key: Tensor, scaling: float, causal: bool) -> Tensor:
    scores = query @ key.transpose(2, 3) * scaling
    if not causal:
        return scores
    later = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(later, -torch.inf)
