"""Attention of many rows to a prompt they share: its keys and values are read once and never repeated.

The rows of a group (a rollout each) continue one prompt. Their queries attend to the prompt's keys and values, of which
there is one copy a group, and to their own ids so far; one softmax spans both. Memory and time of the prompt's part do
not grow with the number of rows beyond the scores themselves, and its gradient is exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from components.policy.packed_attention import Layout, attend_packed

NAME = "shared_prefix"


@dataclass(frozen=True)
class SharedPrefix:
    """The keys and values of some prompts and which rows continue which.

    keys, values: a tensor a layer, [groups, key-value heads, P, head width].
    bias: [groups, 1, 1, P], 0 where a prompt's id stands and -inf where its padding does.
    slot: [rows] the place of each row, in order of groups, when every group has room for `rows_per_group` rows.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    bias: torch.Tensor
    slot: torch.Tensor
    rows_per_group: int

    def select(self, rows: torch.Tensor) -> "SharedPrefix":
        """The same prompts for some of the rows, [chosen] by number in ascending order."""
        return SharedPrefix(self.keys, self.values, self.bias, self.slot[rows], self.rows_per_group)


def share_prompts(model: PreTrainedModel) -> bool:
    """Let the model read shared prompts, if every layer attends to all that came before; tells whether it can."""
    layers = getattr(model.config, "layer_types", None)
    if layers is None:  # Mistral's window, for one, is that of all layers
        layers = ["sliding_attention" if getattr(model.config, "sliding_window", None) else "full_attention"]
    if not model._supports_attention_backend or any(layer != "full_attention" for layer in layers):
        return False
    if model.config._attn_implementation != NAME:
        model.set_attn_implementation(NAME)
    return True


def pad_left(prompts: Sequence[Sequence[int]], pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts as ids and mask, [groups, longest] each, padded on the left."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, prompt in enumerate(prompts):
        ids[index, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[index, width - len(prompt) :] = 1
    return ids, mask


def run_prefix(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, group: torch.Tensor) -> SharedPrefix:
    """Run prompts, padded on the left, once.

    ids, mask: [groups, P]. group: [rows] the group that each row will continue, ascending.
    """
    cache = DynamicCache(config=model.config)
    model.base_model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
    )
    return SharedPrefix(
        keys=[layer.keys for layer in cache.layers],
        values=[layer.values for layer in cache.layers],
        bias=torch.zeros(mask.shape, device=mask.device).masked_fill(mask == 0, -torch.inf)[:, None, None],
        **_slots(group, len(ids)),
    )


def _slots(group: torch.Tensor, groups: int) -> dict[str, Any]:
    counts = torch.bincount(group, minlength=groups)
    first = counts.cumsum(0) - counts
    room = int(counts.max())
    index = torch.arange(len(group), device=group.device)
    return {"slot": group * room + index - first[group], "rows_per_group": room}


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    prefix: SharedPrefix | None = None,
    layout: Layout | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention interface; without prefix and layout it is PyTorch's own scaled dot-product attention.

    prefix: for sampling, where rows have caches of their own. layout: for training, where groups are packed.

    query: [rows, heads, S, width]; key, value: [rows, key-value heads, T, width], the rows' own ids so far, the last
    S of which are those of the query. Returns [rows, S, heads, width].
    """
    if layout is not None:
        return attend_packed(query, key, value, scaling, layout), None
    if prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    rows, heads, length, width = query.shape
    kv_heads, own = key.shape[1], key.shape[2]
    prefix_key, prefix_value = prefix.keys[module.layer_idx], prefix.values[module.layer_idx]
    groups, size = prefix_key.shape[0], prefix_key.shape[2]
    query = query.reshape(rows, kv_heads, heads // kv_heads * length, width) * scaling

    to_prefix = _by_group(query, prefix, groups) @ prefix_key.transpose(2, 3) + prefix.bias
    to_prefix = _by_row(to_prefix, prefix, rows, query.shape[2])
    to_own = query @ key.transpose(2, 3)
    position = torch.arange(own - length, own, device=query.device).repeat(heads // kv_heads)
    hidden = torch.arange(own, device=query.device) > position[:, None]
    scores = torch.cat([to_prefix, to_own.masked_fill(hidden, -torch.inf)], -1)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    from_prefix = _by_group(weights[..., :size], prefix, groups) @ prefix_value
    output = _by_row(from_prefix, prefix, rows, query.shape[2]) + weights[..., size:] @ value
    return output.reshape(rows, heads, length, width).transpose(1, 2), None


def _by_group(tensor: torch.Tensor, prefix: SharedPrefix, groups: int) -> torch.Tensor:
    """[rows, heads, S, X] to [groups, heads, rows of the group * S, X], with zeros where a group has fewer rows."""
    rows, heads, length, width = tensor.shape
    room = groups * prefix.rows_per_group
    if rows < room:
        tensor = tensor.new_zeros(room, heads, length, width).index_copy(0, prefix.slot, tensor)
    tensor = tensor.reshape(groups, prefix.rows_per_group, heads, length, width).transpose(1, 2)
    return tensor.reshape(groups, heads, prefix.rows_per_group * length, width)


def _by_row(tensor: torch.Tensor, prefix: SharedPrefix, rows: int, length: int) -> torch.Tensor:
    """The way back: [groups, heads, rows of the group * S, X] to [rows, heads, S, X]."""
    groups, heads, _, width = tensor.shape
    tensor = tensor.reshape(groups, heads, prefix.rows_per_group, length, width).transpose(1, 2)
    tensor = tensor.reshape(groups * prefix.rows_per_group, heads, length, width)
    return tensor if rows == len(tensor) else tensor[prefix.slot]


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
