"""What one pass keeps in memory, counted while the real scorer runs, forward and back, on PyTorch's meta device.

Tensors have shapes there and no numbers, so that nothing is loaded and nothing computed.
"""

import math
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from components.errors import UserError
from components.policy.logprobs import Row, Scorer
from components.policy.model import head_width
from components.policy.packed_attention import takes_varlen


def micro_batch_bytes(policy: PreTrainedModel, tokens: int, row: int, *, gpu: bool = False) -> int:
    """The most bytes that the forward and backward pass of one micro-batch keeps at once, in one group: a prompt and
    rollouts of about `row` tokens each. Of the weights' gradients the one at hand is counted, the others are not.

    gpu: as attention is computed there.

    Raises:
        UserError: the forward pass depends on numbers.
    """
    sequences = max(2, math.ceil(tokens / row))  # of one length: padding would depend on numbers
    length = max(2, tokens // sequences)
    try:
        scorer = Scorer(policy)
        scorer.varlen = gpu and takes_varlen(torch.device("cuda"), policy.dtype, head_width(policy.config))
        # One rationale differs from the next, or they would be read once.
        rows = [Row((number,) * (length - 1), (0, 0), 0) for number in range(sequences - 1)]
        batch = scorer.collate([(0,) * length], [rows])
        hooks = [
            parameter.register_post_accumulate_grad_hook(_forget)
            for parameter in policy.parameters()
            if parameter.requires_grad
        ]
        with _Live([*policy.parameters(), *policy.buffers()]) as live:
            scorer(batch).sum().backward()
    except RuntimeError as error:
        raise UserError(
            f"the memory of {type(policy).__name__} cannot be computed from its shapes alone:"
            f" {' '.join(str(error).split())[:200]}"
        ) from error
    for hook in hooks:
        hook.remove()
    return live.peak


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


class _Live(TorchDispatchMode):
    """Counts the bytes of all tensors that exist, and the most that did at one time, but for those given."""

    def __init__(self, others: Sequence[Tensor]) -> None:
        super().__init__()
        self.sizes = {tensor.untyped_storage()._cdata: 0 for tensor in others}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return found

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, storage._cdata)

    def _gone(self, name: int) -> None:
        self.now -= self.sizes.pop(name)
