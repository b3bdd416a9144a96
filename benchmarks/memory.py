"""Memory of each process of ZeRO 3 beside what was computed: `make bench-memory`.

Four processes train a Qwen3 of 50M random weights for two steps on the CPU. The peak of each is what was resident at
once (VmHWM of proc(5)) beyond what the process held after its imports and a step of a tiny model, which brings in the
code and makes the connections. So it counts tensors, and what the allocator, gloo and Python keep besides; the tensors
alone are told by PyTorch's allocator, in a third step. Writes memory.json.
"""

import argparse
import gc
import json
import multiprocessing
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.peak import live, peak, peak_of, reset_peak
from components.addresses import free_port
from components.capacity import capacity
from components.config import Arm, Settings, load_settings
from components.pass_memory import micro_batch_bytes
from components.rollout.engine import Rollout
from components.training.batches import Group
from components.training.ranks import Ranks
from components.training.trainer import Trainer
from components.training.zero import load_policy, start_ranks

PARAMS = Path(__file__).parent.parent / "params.yaml"
OUT = Path("build/bench/memory.json")
PROCESSES, GROUP_SIZE, PROMPT, NEW = 4, 4, 32, 32
TOKENS = PROMPT + GROUP_SIZE * NEW  # of a group, which is a process's micro-batch


def config(width: int, layers: int) -> Qwen3Config:
    """In the proportions of Qwen3-0.6B, but for the vocabulary, which is bytes."""
    return Qwen3Config(
        vocab_size=260, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=width // 32, num_key_value_heads=width // 64, head_dim=64, tie_word_embeddings=True,
        max_position_embeddings=PROMPT + NEW,
    )  # fmt: skip


TINY, MODEL = config(64, 1), config(512, 13)


@dataclass(frozen=True)
class Measured:
    """Bytes of one process beyond its imports.

    start: the most that was resident until it was ready to train. training: in two steps. after: still, behind them.
    tensors: the most that tensors took in a third step.
    """

    start: int
    training: int
    after: int
    tensors: int


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory of each process of ZeRO 3 beside what was computed.")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    settings = load_settings(
        PARAMS,
        [f"model.dtype={parser.parse_args().dtype}", f"train.groups_per_step={PROCESSES}", "train.zero_stage=3",
         f"rollout.group_size={GROUP_SIZE}", f"rollout.max_new_tokens={NEW}", f"train.micro_batch_tokens={TOKENS}"],
    )  # fmt: skip
    # Blocks that are free go back at once: what is resident is then what is in use.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "DS_ACCELERATOR": "cpu"}
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        torch.manual_seed(0)
        Qwen3ForCausalLM(MODEL).to(getattr(torch, settings.model.dtype)).save_pretrained(folder)
        port = free_port("127.0.0.1")
        found = pool.starmap(train, [(rank, port, folder, settings) for rank in range(PROCESSES)], chunksize=1)
    figures = expected(settings)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(figures | {"processes": [asdict(each) for each in found]}, indent=1) + "\n")
    print(f"{figures['parameters']:,} weights, {settings.model.dtype}, ZeRO 3, {PROCESSES} processes; MB of each\n")
    for name, size in figures.items():
        if name != "parameters":
            print(f"{name.replace('_', ' '):<60}{size / 1e6:>8.1f}")
    for name in ("start", "training", "after", "tensors"):
        sizes = "".join(f"{getattr(each, name) / 1e6:>8.1f}" for each in found)
        print(f"{'measured, ' + name:<60}{sizes}")


def expected(settings: Settings) -> dict[str, int]:
    """Bytes that the state, a layer and a micro-batch take, and what `thaw plan` computes for a process."""
    with torch.device("meta"):
        policy = Qwen3ForCausalLM(MODEL).to(getattr(torch, settings.model.dtype))
    found = capacity(policy, settings, processes=PROCESSES, device_bytes=0, gpu=False)
    state = found.state.bytes
    parts = [*policy.model.layers, policy.lm_head]
    layer = max(sum(weight.nbytes for weight in part.parameters()) for part in parts)
    activations = micro_batch_bytes(policy, found.micro_batch, NEW)
    return {
        "parameters": found.parameters,
        "a_quarter_of_the_state": state,
        "one_layer": layer,
        "activations": activations,
        "bound": state + layer + activations,
        "computed_training": found.state.bytes + max(phase.bytes for phase in found.phases if phase.name != "sampling"),
    }


def train(rank: int, port: int, folder: str, settings: Settings) -> Measured:
    """Two steps in one of the processes."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(PROCESSES)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    start_ranks()
    arm, dtype = Arm.parse("garl-q0.75"), settings.model.dtype
    tiny = Trainer(Qwen3ForCausalLM(TINY).to(getattr(torch, dtype)), arm, settings.train, seed=0)
    tiny.update([_group(rank, 0)], 0)
    tiny.close()
    del tiny
    gc.collect()
    others, before = live(), reset_peak()
    trainer = Trainer(load_policy(Path(folder), settings.train, dtype=dtype), arm, settings.train, seed=0)
    start = peak()
    reset_peak()
    for step in range(2):
        trainer.update([_group(rank, step)], step)
    training, after = peak(), reset_peak()
    tensors = live() - others + peak_of(lambda: trainer.update([_group(rank, 2)], 2))
    trainer.close()
    Ranks().wait()
    torch.distributed.destroy_process_group()
    return Measured(start - before, training - before, after - before, tensors)


def _group(rank: int, step: int) -> Group:
    random = torch.Generator().manual_seed(rank + PROCESSES * step)
    prompt = tuple(torch.randint(256, (PROMPT,), generator=random).tolist())
    gold = (1, 2, 3, 4)
    rollouts = []
    for _ in range(GROUP_SIZE):
        thought = tuple(torch.randint(256, (NEW - len(gold),), generator=random).tolist())
        rollouts.append(Rollout(prompt, thought, (), (-5.5,) * len(thought), "length", 0))
    return Group(prompt, rollouts, [gold] * GROUP_SIZE, None)


if __name__ == "__main__":
    main()
