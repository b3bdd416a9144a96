"""A device that is none: its tensors call themselves `meta` and have numbers, and mix with the CPU's as a GPU's would.

So a tensor that is left on the CPU fails a test on a machine without a GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
aten = torch.ops.aten
COPIES = {aten.copy_, aten._to_copy}
INDEXING = {aten.index, aten.index_put_, aten.index_put}  # by indices, the second argument, that may lie on the CPU


class Elsewhere(Tensor):
    """A tensor of the device; what it holds lies on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Elsewhere":
        made = Tensor._make_wrapper_subclass(cls, inner.shape, inner.stride(), dtype=inner.dtype, device=DEVICE)
        made.held = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Sees what is made anew, where no tensor is given."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """Sees torch.tensor and tolist, which on the meta device lose the numbers before anybody is asked."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.tensor and kwargs.get("device") == DEVICE:
            return torch.tensor(*args, **kwargs | {"device": "cpu"}).to(DEVICE)
        if function is Tensor.tolist:
            return _inner(args[0]).tolist()
        return function(*args, **kwargs)


@contextmanager
def device(module: nn.Module) -> Iterator[torch.device]:
    """A device with this module on it, as long as the context is open."""
    moved = {weight: nn.Parameter(Elsewhere(weight.detach())) for weight in module.parameters()}  # tied ones once
    for part in module.modules():
        part._parameters |= {name: moved[weight] for name, weight in part._parameters.items() if weight is not None}
        part._buffers |= {name: Elsewhere(buffer) for name, buffer in part._buffers.items() if buffer is not None}
    with _Factories(), _Literals():
        yield DEVICE


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    called = function.overloadpacket
    meeting = (args[0], *args[2:]) if called in INDEXING else (args, kwargs)
    tensors = [leaf for leaf in tree_leaves(meeting) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    left = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and tensor.dim() > 0]
    assert not (there and left) or called in COPIES, f"{function} of tensors on both devices"
    wanted = kwargs.get("device")
    goes = bool(there) if wanted is None else torch.device(wanted) == DEVICE
    if wanted is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    found = function(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if called is aten.copy_:
        goes = isinstance(args[0], Elsewhere)
    wrapped = tree_map(lambda leaf: Elsewhere(leaf) if isinstance(leaf, Tensor) else leaf, found) if goes else found
    return return_and_correct_aliasing(function, args, kwargs, wrapped)


def _inner(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, Elsewhere) else leaf
