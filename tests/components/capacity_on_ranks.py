"""What training holds in memory, measured in each of however many processes started this; every one writes a file."""

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from benchmarks.peak import live, peak_of, size
from components.config import Arm, Settings
from components.training.trainer import Trainer
from tests.components.training.by_hand import make_groups
from tests.conftest import small_settings

SHAPES = ((8, 24), (8, 24), (8, 24), (8, 24))  # groups of about 100 ids
LONG = 64  # ids of a prompt and its longest rollout; more than SHAPES has
# Precision, ZeRO stage and rank of the adapters; SHARED: where processes share something.
CASES = [("float32", 0, 0), ("float32", 1, 0), ("float32", 3, 0), ("bfloat16", 0, 0), ("bfloat16", 2, 0),
         ("bfloat16", 3, 0), ("bfloat16", 2, 4)]  # fmt: skip
SHARED = [case for case in CASES if case[1]]


def build(dtype: str) -> PreTrainedModel:
    """A tied Qwen3 of 110,000 weights, of which two processes cannot share every one evenly."""
    config = Qwen3Config(
        vocab_size=151, hidden_size=63, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, max_position_embeddings=LONG,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).to(getattr(torch, dtype))


def settings(dtype: str, stage: int, lora_rank: int, *others: str) -> Settings:
    return small_settings(
        f"model.dtype={dtype}", f"train.zero_stage={stage}", f"train.lora_rank={lora_rank}",
        "train.micro_batch_tokens=64", "rollout.max_new_tokens=48", *others,
    )  # fmt: skip


def measure(dtype: str, stage: int, lora_rank: int, folder: Path) -> dict[str, int]:
    """Bytes by what they are, after two updates.

    live: of all tensors between the updates. peak: the most that the second one held at one time. saved: in `folder`,
    what all processes wrote to resume from.
    """
    others = live()
    trainer = Trainer(build(dtype), Arm.parse("garl-q0.75"), settings(dtype, stage, lora_rank).train, seed=0)
    groups = make_groups("garl-q0.75", shapes=SHAPES)[trainer.ranks.rank :: trainer.ranks.size]
    trainer.update(groups, 0)
    found = held(trainer) | {"live": live() - others}
    found["peak"] = found["live"] + peak_of(lambda: trainer.update(groups, 1))
    trainer.save(folder)
    trainer.ranks.wait()
    found["saved"] = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    trainer.close()
    return found


def held(trainer: Trainer) -> dict[str, int]:
    """Of a trainer between two updates: weights, their float32 copy, AdamW's moments, and ZeRO 3's gradients."""
    optimizer: Any = trainer.engine.optimizer
    inner = getattr(optimizer, "optimizer", optimizer)
    weights = [getattr(parameter, "ds_tensor", parameter) for parameter in trainer.policy.parameters()]
    stepped = getattr(optimizer, "fp32_partitioned_groups_flat", None) or inner.param_groups[0]["params"]
    own = {weight.untyped_storage().data_ptr() for weight in weights}
    return {
        "weights": size(weights),
        "master": size(tensor for tensor in stepped if tensor.untyped_storage().data_ptr() not in own),
        "moments": size(state[name] for state in inner.state.values() for name in ("exp_avg", "exp_avg_sq")),
        "gradients": size([optimizer.grad_partitions_flat_buffer] if trainer.settings.zero_stage == 3 else []),
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # hundreds of lines, for which nobody waits while the other process runs
    logging.disable(logging.WARNING)
    found = [measure(*case, folder / str(number)) for number, case in enumerate(SHARED)]
    (folder / f"rank-{torch.distributed.get_rank()}.json").write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
