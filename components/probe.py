"""The cold-start probe: how often the base model would be right, and so whether RL would get any signal.

P of an example is the group mean of w = p(y* given x*, z) over rationales sampled from the base model: a success
probability that needs no success to be seen.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from components.config import Arm, Settings
from components.data.example import Example
from components.data.split_files import example, load_split
from components.evaluation.evaluate import evaluate
from components.evaluation.metrics import finite
from components.policy.model import Codec, load_tokenizer
from components.progress import progress
from components.randomness import derive_seed, generator
from components.rollout.engine import RolloutEngine, Sampling
from components.rollout.open import open_engine, sampled_model
from components.rollout.sample import sample
from components.training.groups import gold_group
from components.training.trainer import Trainer, open_trainer

ROWS, BAR = 10, 40  # the most rows of a histogram, and the characters of its longest bar
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Probe:
    """What the base model's groups say. Logs are natural; None stands for log 0."""

    examples: int
    group_size: int
    p0: dict[str, float]  # mean and median of P over examples
    kinds: dict[str, dict[str, float]]  # the same of each kind of example, the warmest first; empty without kinds
    log10_quantiles: dict[str, float | None]
    grpo_groups_with_signal: float  # the share of groups in which GRPO would see unequal rewards, expected
    log_p: list[float | None]  # log w_bar of each probed example
    base: dict[str, float]  # the base model's figures on the test split


def probe(settings: Settings, *, data: Path, base: Path, out: Path) -> Probe:
    """Estimate P of settings.probe.examples training examples under the base model; writes out/probe.json.

    All processes share the work, and each of them gets the result. out also gets samples.jsonl, the base model's
    answers to the test split.
    """
    torch.set_num_threads(settings.compute.threads)
    # Before any update all arms' trainers score alike.
    trainer = open_trainer(settings, Arm.parse(settings.arms[0]), derive_seed("probe"), base)
    ranks = trainer.ranks
    codec = Codec(load_tokenizer(base), settings.model, chat=settings.task.start == "warm")
    train = load_split(data, "train")
    chosen = torch.randperm(len(train), generator=generator("probe"))[: settings.probe.examples]
    probed = [example(train[int(index)]) for index in chosen]
    with open_engine(settings, sampled_model(settings, base, trainer.own_model), base, codec.markers, ranks) as engine:
        log_p = log_success(engine, trainer, codec, probed, settings)
        test = [example(row) for row in load_split(data, "test")]
        result = evaluate(engine, codec, test, settings.task.name, settings.rollout, settings.evaluation, ranks)
    trainer.close()
    p = log_p.exp()
    found = Probe(
        examples=len(p),
        group_size=settings.rollout.group_size,
        p0=_typical(p),
        kinds=_by_kind(p, [item.kind for item in probed]),
        log10_quantiles={str(q): finite(_quantile(log_p, q) / math.log(10)) for q in QUANTILES},
        grpo_groups_with_signal=grpo_signal(p, settings.rollout.group_size),
        log_p=[finite(value) for value in log_p.tolist()],
        base=result.figures(),
    )
    if not ranks.first:
        return found
    out.mkdir(parents=True, exist_ok=True)
    (out / "probe.json").write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    result.write(out / "samples.jsonl")
    return found


def log_success(
    engine: RolloutEngine, trainer: Trainer, codec: Codec, examples: Sequence[Example], settings: Settings
) -> torch.Tensor:
    """log w_bar of every example, [examples] in float64, from one group of rationales each.

    All processes share the examples, and each of them gets all values.
    """
    groups_at_once, ranks = settings.train.groups_per_step, trainer.ranks
    found: dict[int, float] = {}
    for first in progress(range(0, len(examples), groups_at_once), "probe"):
        places = range(min(groups_at_once, len(examples) - first))[ranks.rank :: ranks.size]
        mine = [examples[first + place] for place in places]
        sampling = Sampling(
            max_new_tokens=settings.rollout.max_new_tokens,
            answer_reserve=settings.rollout.answer_reserve,
            seed=derive_seed("probe", first),
            answers=False,
            places=tuple(places),
        )
        sampled = sample(engine, codec, mine, settings.rollout.group_size, sampling)
        groups = [gold_group(codec, *group) for group in zip(mine, sampled, places, strict=True)]
        found |= zip((first + place for place in places), trainer.log_p(groups), strict=True)
    return torch.tensor(ranks.merge(found), dtype=torch.float64)


def grpo_signal(p: torch.Tensor, group_size: int) -> float:
    """The expected share of groups with both a right and a wrong rollout: 1 - (1 - P)^M - P^M, averaged."""
    return (1 - (1 - p) ** group_size - p**group_size).mean().item()


def histogram(log_p: Sequence[float | None]) -> list[str]:
    """Lines for a terminal: how many examples have which P, the likeliest first, in steps of whole powers of ten.

    log_p: natural logarithms; None is a P of 0.
    """
    powers = [math.ceil(value / math.log(10)) for value in log_p if value is not None]  # P is at most 10^power
    if powers:
        step = -(-(max(powers) - min(powers) + 1) // ROWS)
        counts = Counter((max(powers) - power) // step for power in powers)
        rows = {max(powers) - step * row: counts[row] for row in range(max(counts) + 1)}
        lines = {f"10^{top - step} to 10^{top}": count for top, count in rows.items()}
    else:
        lines = {}
    if zeros := len(log_p) - len(powers):
        lines["0"] = zeros
    longest, width = max(lines.values()), max(map(len, lines))
    return [
        f"{name:>{width}}  {'#' * math.ceil(BAR * count / longest):<{BAR}} {count:>4}" for name, count in lines.items()
    ]


def _typical(p: torch.Tensor) -> dict[str, float]:
    return {"mean": p.mean().item(), "median": p.median().item()}


def _by_kind(p: torch.Tensor, kinds: Sequence[str]) -> dict[str, dict[str, float]]:
    found = {kind: _typical(p[[of == kind for of in kinds]]) for kind in set(kinds) - {""}}
    return dict(sorted(found.items(), key=lambda item: (-item[1]["median"], item[0])))


def _quantile(log_p: torch.Tensor, q: float) -> float:
    # By rank, since interpolating next to -inf gives NaN.
    return log_p.sort().values[round(q * (len(log_p) - 1))].item()
