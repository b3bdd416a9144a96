"""Low-rank adapters (LoRA, https://arxiv.org/abs/2106.09685) by peft, in place: the model keeps its class."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from components.policy.sharded import whole
from components.randomness import derive_seed

if TYPE_CHECKING:
    from peft import LoraConfig


def add_adapters(policy: PreTrainedModel, rank: int, seed: int) -> None:
    """Put an adapter of this rank on every linear layer but the head; nothing else is trained any more.

    The scale is 2 (alpha = 2 rank), whatever the rank.
    """
    from peft import inject_adapter_in_model

    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "lora"))
        inject_adapter_in_model(_config(rank), policy)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_("lora_" in name)


def adapters(policy: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The adapters' weights by the names that a file of peft's has for them; all ranks take part.

    Where ZeRO 3 has sharded a weight, it is whole only until the next one is asked for.
    """
    for name, weight in policy.named_parameters():
        if ".lora_" in name:
            with whole([weight]):
                yield f"base_model.model.{name.replace('.default.', '.')}", weight.detach()


def write_config(rank: int, folder: Path) -> None:
    """What a folder of adapters says of itself (adapter_config.json)."""
    _config(rank).save_pretrained(str(folder))


def _config(rank: int) -> "LoraConfig":
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
