"""A device that is not the CPU, on a machine that has no other. Its tensors compute as the CPU's do and refuse to meet
those, so that a tensor left behind on the CPU fails here as it would on a GPU.

Run as a program it scores, learns and samples there, beside the CPU; PyTorch knows the device for the rest of the
process, so it wants one of its own.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from components.policy.logprobs import Row, Scorer, sequence_logprobs
from components.policy.markers import Markers
from components.rollout.engine import Rollout, Sampling
from components.rollout.transformers_engine import TransformersEngine

_setup_privateuseone_for_python_backend("far")
KERNELS = torch.library.Library("aten", "IMPL")


class FarTensor(Tensor):
    """near: the tensor of the CPU that holds its numbers."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> "FarTensor":
        shape = {"strides": near.stride(), "storage_offset": near.storage_offset()}
        far = Tensor._make_wrapper_subclass(cls, near.shape, **shape, dtype=near.dtype, device=torch.device("far", 0))
        far.near = near
        return far

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(function, args, kwargs or {})

    def tolist(self) -> Any:  # which PyTorch refuses to subclasses
        return self.near.tolist()


class Far(TorchDispatchMode):
    """Inside of it, what is made for the far device from nothing (zeros, arange) is made there."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(function, args, kwargs or {})


def _compute(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    far = [leaf for leaf in given if isinstance(leaf, FarTensor)]
    left = [leaf for leaf in given if not isinstance(leaf, FarTensor) and leaf.ndim]
    if far and left and function is not torch.ops.aten.copy_.default:
        raise RuntimeError(f"{function}: a tensor of the CPU, {tuple(left[0].shape)}, meets one of another device")
    to = kwargs.get("device")
    if to is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    found = function(*tree_map(_near, args), **tree_map(_near, kwargs))
    if not far if to is None else to.type == "cpu":
        return found
    same = {id(leaf.near): leaf for leaf in far}  # what was changed in place
    return tree_map(lambda leaf: same[id(leaf)] if id(leaf) in same else _far(leaf), found)


def _near(leaf: Any) -> Any:
    return leaf.near if isinstance(leaf, FarTensor) else leaf


def _far(leaf: Any) -> Any:
    return FarTensor(leaf) if isinstance(leaf, Tensor) else leaf


def _empty(size: Any, stride: Any, dtype: Any = None, **_: Any) -> Tensor:
    return FarTensor(torch.empty_strided(size, stride, dtype=dtype))


def _copy(source: Tensor, target: Tensor, *_: Any, **__: Any) -> Tensor:
    _near(target).copy_(_near(source))
    return target


# What makes a tensor there from numbers of Python, or from one of the CPU.
KERNELS.impl("empty_strided", _empty, "PrivateUse1")
KERNELS.impl("_copy_from", _copy, "PrivateUse1")


def send(model: nn.Module) -> None:
    """Put a model's parameters and buffers on the far device; `Module.to` does not take such tensors."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            module._parameters[name] = None if weight is None else nn.Parameter(FarTensor(weight.detach()))
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else FarTensor(buffer)


def learn(model: PreTrainedModel) -> list[Tensor]:
    """log p of two groups' rationales and answers, and what their sum asks of every weight."""
    scorer = Scorer(model)
    rows = [[Row((5, 6), (7, 8), 0), Row((6,), (7, 8), 1), Row((9, 9, 9), (7, 8), 0)], [Row((5, 6), (7, 8), 0)]]
    batch = scorer.collate([(1, 2, 3), (4, 5)], rows)
    rationale, answer = sequence_logprobs(scorer(batch), batch)
    model.zero_grad()
    (rationale.sum() + answer.sum()).backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return [tensor.detach().cpu() for tensor in (rationale, answer, *gradients)]


def sampled(model: PreTrainedModel) -> list[Rollout]:
    engine = TransformersEngine(model, Markers((10,), (11,), 0), batch_rollouts=8)
    return [rollout for group in engine.generate([(1, 2, 3), (4, 5)], 4, Sampling(12, 4, seed=7)) for rollout in group]


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = Qwen3Config(vocab_size=32, hidden_size=32, intermediate_size=64, max_position_embeddings=64, **shape)
    model = Qwen3ForCausalLM(config)
    near, rollouts = learn(model), sampled(model)
    with Far():
        send(model)
        for here, there in zip(near, learn(model), strict=True):
            torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-5)
        for here, there in zip(rollouts, sampled(model), strict=True):
            assert (there.rationale_ids, there.answer_ids) == (here.rationale_ids, here.answer_ids)
            torch.testing.assert_close(there.logprobs, here.logprobs, rtol=1e-4, atol=1e-5)
        with pytest.raises(RuntimeError, match=r"a tensor of the CPU, \(1, 32\), meets one"):
            model.lm_head(torch.zeros(1, 32))


if __name__ == "__main__":
    main()
