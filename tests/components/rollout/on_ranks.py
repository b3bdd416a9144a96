"""The groups of two steps, sampled from servers by however many processes started this; each writes its own."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch

from components.policy.embedded import build_tokenizer
from components.policy.markers import Markers
from components.policy.model import load_model
from components.rollout.engine import Rollout, Sampling
from components.rollout.vllm_server import VllmServerEngine
from components.training.ranks import Ranks
from components.training.zero import start_ranks
from tests.components.models import add_noise

SAMPLING = Sampling(max_new_tokens=14, answer_reserve=6, seed=1)
# One a place: the second and the last two fill a block of the prefix cache.
PROMPTS = [(119, 51, 49, 52, 50, 63), (48, 63) * 70, (55, 63), (114, 55, 63), (57, 63) * 70, (63, 48) * 70]
ROLLOUTS = 8


def known_markers() -> Markers:
    [end], [turn], [pad] = build_tokenizer()(["</think>", "<end>", "<pad>"])["input_ids"]
    return Markers((end,), (turn,), pad)


def steps(engine: VllmServerEngine, folder: Path, ranks: Ranks) -> Iterator[dict[int, list[Rollout]]]:
    """A process's groups by place, of each step; the weights change between steps, and the first process alone has
    them."""
    model, random = load_model(folder).eval(), torch.Generator().manual_seed(0)
    places = tuple(range(ranks.rank, len(PROMPTS), ranks.size))
    for step in range(2):
        add_noise(model.parameters(), 0.03, random)
        engine.load_weights((name, weight * ranks.first) for name, weight in model.state_dict().items())
        sampling = replace(SAMPLING, seed=step, places=places)
        groups = engine.generate([PROMPTS[place] for place in places], ROLLOUTS, sampling)
        yield dict(zip(places, groups, strict=True))
        ranks.wait()  # as the update behind it does


def main(folder: Path, out: Path, *urls: str) -> None:
    torch.set_num_threads(1)
    start_ranks()
    ranks = Ranks()
    with VllmServerEngine(urls, folder, known_markers(), timeout_seconds=300, peers=ranks) as engine:
        for step, groups in enumerate(steps(engine, folder, ranks)):
            told = {place: [asdict(rollout) for rollout in group] for place, group in groups.items()}
            (out / f"step-{step}-rank-{ranks.rank}.json").write_text(json.dumps(told), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
