"""What tests do with a model: run it plainly, and change its weights."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel


def plain_logprobs(model: PreTrainedModel, prompt: Sequence[int], ids: Sequence[int]) -> Tensor:
    """log p of every id behind a prompt, [their number], from one forward pass over this sequence alone."""
    whole = torch.tensor([[*prompt, *ids]])
    logprobs = model(input_ids=whole, use_cache=False).logits[0, :-1].log_softmax(-1)
    return logprobs.gather(1, whole[0, 1:, None])[len(prompt) - 1 :, 0]


@torch.no_grad()
def add_noise(weights: Iterable[Tensor], scale: float, random: torch.Generator | None = None) -> None:
    """As if trained; random: PyTorch's own generator if none is given."""
    for weight in weights:
        weight.add_(scale * torch.randn(weight.shape, generator=random))
