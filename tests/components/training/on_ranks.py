"""Ten updates at every ZeRO stage on however many processes started this; the first one writes the weights."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from components.config import Arm
from components.training.trainer import Trainer
from components.training.zero import load_policy
from tests.components.training.by_hand import make_groups, settings

SHAPES = ((1, 3), (6, 5), (3, 7), (4, 9), (2, 2))  # five groups: two processes have unequal shares and passes

RUNS = (("garl-q0.75", range(4), 0), ("garl-q0.75", (3,), 2), ("paft-q0.75", (2, 3), 0), ("grpo", (2,), 0))


def main(policy: Path, out: Path) -> None:
    torch.set_num_threads(1)
    decide = Trainer._should_recompute
    for arm, stages, rank in RUNS:
        for stage in stages:
            # Without this groups so small would be read once by all.
            Trainer._should_recompute = (lambda *_: True) if arm == "paft-q0.75" and stage == 3 else decide
            train = settings(
                zero_stage=stage, micro_batch_tokens=40, max_grad_norm=0.1, learning_rate=1e-3, steps=10, lora_rank=rank
            )
            model = load_policy(policy, train, dtype="float32")
            assert stage < 3 or all(weight.numel() == 0 for weight in model.parameters()), "a whole weight"
            trainer = Trainer(model, Arm.parse(arm), train, seed=7)
            for step in range(10):
                groups = make_groups(arm, seed=step, shapes=SHAPES)
                trainer.update(groups[trainer.ranks.rank :: trainer.ranks.size], step)
            weights = {name: weight.clone() for name, weight in trainer.weights() if name != "lm_head.weight"}
            if trainer.ranks.first:
                save_file(weights, out / f"{arm}-stage{stage}{'-lora' if rank else ''}.safetensors")
            trainer.close()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
