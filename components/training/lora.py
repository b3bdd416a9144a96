"""Low-rank adapters (LoRA, https://arxiv.org/abs/2106.09685) by peft, in place: the model keeps its class."""

import torch
from transformers import PreTrainedModel

from components.randomness import derive_seed


def add_adapters(policy: PreTrainedModel, rank: int, seed: int) -> None:
    """Put an adapter of this rank on every linear layer but the head; nothing else is trained any more.

    The scale is 2 (alpha = 2 rank), whatever the rank.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "lora"))
        inject_adapter_in_model(config, policy)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_("lora_" in name)
