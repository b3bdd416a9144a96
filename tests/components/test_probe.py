"""The cold-start probe: P by enumeration, what GRPO would see of it, and the file that is left behind."""

import json
import math
from dataclasses import asdict
from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from components.config import Arm
from components.data.example import Example
from components.data.skills import KINDS
from components.data.split_files import load_split
from components.policy.base import make_base
from components.policy.embedded import build_model, build_tokenizer
from components.policy.model import Codec
from components.probe import grpo_signal, histogram, log_success, probe
from components.rollout.transformers_engine import TransformersEngine
from components.training.trainer import Trainer
from tasks.inputs import make_data
from tests.conftest import small_settings

pytestmark = pytest.mark.usefixtures("one_thread")


# What GRPO sees


@pytest.mark.parametrize("p", [0.0, 1e-8, 0.03, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_signal_is_the_probability_of_unequal_rewards(p: float, size: int) -> None:
    unequal = sum(
        math.prod(p if right else 1 - p for right in rewards)
        for rewards in product([True, False], repeat=size)
        if len(set(rewards)) == 2
    )
    assert grpo_signal(torch.tensor([p], dtype=torch.float64), size) == pytest.approx(unequal, rel=1e-6, abs=1e-15)


def test_signal_is_a_mean_over_examples() -> None:
    p = torch.tensor([0.0, 0.5, 1.0, 0.5], dtype=torch.float64)
    assert grpo_signal(p, 3) == pytest.approx(0.375)


# What is shown of P


def test_histogram_counts_every_example_once_by_powers_of_ten() -> None:
    ten = math.log(10)
    lines = histogram([-0.5 * ten, -0.9 * ten, -1.5 * ten, -3.2 * ten, None])
    assert [line.strip().split("  ")[0] for line in lines] == [
        "10^-1 to 10^0", "10^-2 to 10^-1", "10^-3 to 10^-2", "10^-4 to 10^-3", "0",
    ]  # fmt: skip
    assert [line.split()[-1] for line in lines] == ["2", "1", "0", "1", "1"]
    assert [line.count("#") for line in lines] == [40, 20, 0, 20, 20]


@pytest.mark.parametrize("lowest", [-1, -9, -10, -11, -99, -300])
def test_histogram_is_short_however_wide_the_range(lowest: int) -> None:
    powers = [lowest * share / 200 for share in range(201)]
    lines = histogram([power * math.log(10) for power in powers])
    assert len(lines) <= 10
    assert max(map(len, lines)) <= 80
    assert sum(int(line.split()[-1]) for line in lines) == 201


def test_histogram_of_impossible_answers_alone() -> None:
    assert [line.split()[0] for line in histogram([None, None])] == ["0"]


# P


def test_log_success_is_the_probability_summed_over_all_rationales() -> None:
    """With room for one sampled id a rationale is one of 260: the marker, or any other id and the marker forced."""
    size = 1500
    settings = small_settings("rollout.max_new_tokens=9", "rollout.answer_reserve=8", f"rollout.group_size={size}")
    tokenizer = build_tokenizer()
    policy, plain = (build_model(tokenizer, seed=0) for _ in range(2))
    with torch.no_grad():
        for weight in (*policy.parameters(), *plain.parameters()):
            weight.mul_(5 if weight.ndim == 2 else 1)  # so that some rationales are much better than others
    codec = Codec(tokenizer, settings.model, chat=False)
    examples = [Example(prompt, prompt, ("a:1",), prompt) for prompt in ("3142?", "7?")]
    engine = TransformersEngine(policy, codec.markers, batch_rollouts=size)
    trainer = Trainer(policy, Arm.parse("garl-q1"), settings.train, seed=0)
    found = log_success(engine, trainer, codec, examples, settings).exp()
    trainer.close()

    marker, gold = codec.markers.end_of_thinking, codec.gold_answer("a:1")
    for item, estimate in zip(examples, found.tolist(), strict=True):
        prompt = codec.prompt(item.prompt)
        with torch.no_grad():
            likely = plain(torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
        others = [first for first in range(len(tokenizer)) if first != marker[0]]
        w = torch.zeros(len(tokenizer), dtype=torch.float64)
        w[others] = answer_probability(plain, [(*prompt, first, *marker) for first in others], gold)
        w[marker[0]] = answer_probability(plain, [(*prompt, *marker)], gold)
        p, second = (likely @ w).item(), (likely @ w**2).item()
        error = math.sqrt((second - p**2) / size)
        assert abs(estimate - p) < 3.5 * error
        assert error < 0.05 * p
        assert w.min() * 3 < p < w.max() / 3  # so that a rationale weighed wrongly would show


@torch.no_grad()
def answer_probability(model: PreTrainedModel, before: list[tuple[int, ...]], gold: tuple[int, ...]) -> torch.Tensor:
    """p of an answer behind ids of equal length, [their number]."""
    whole = torch.tensor([[*ids, *gold] for ids in before])
    logprobs = model(whole).logits[:, :-1].double().log_softmax(-1)
    return logprobs.gather(2, whole[:, 1:, None])[:, -len(gold) :, 0].sum(1).exp()


# The whole


def test_probe_writes_what_it_found(tmp_path: Path) -> None:
    settings = small_settings()
    make_data(settings, tmp_path / "data")
    make_base(settings, tmp_path / "base")
    found = probe(settings, data=tmp_path / "data", base=tmp_path / "base", out=tmp_path / "out")
    again = probe(settings, data=tmp_path / "data", base=tmp_path / "base", out=tmp_path / "again")

    written = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert written == asdict(found) == asdict(again)
    assert (tmp_path / "out/samples.jsonl").read_bytes() == (tmp_path / "again/samples.jsonl").read_bytes()
    assert set(written) == {
        "examples", "group_size", "p0", "log10_quantiles", "grpo_groups_with_signal", "log_p", "base", "kinds",
    }  # fmt: skip
    assert (written["examples"], written["group_size"]) == (8, 4)

    log_p = torch.tensor(written["log_p"], dtype=torch.float64)
    assert len(log_p) == len(set(written["log_p"])) == 8
    assert log_p.max() < -20  # seven ids of an untrained model, each about once in 260
    assert written["p0"]["mean"] == pytest.approx(log_p.exp().mean().item())
    assert written["p0"]["median"] == pytest.approx(log_p.exp().median().item())
    assert len(written["kinds"]) > 1
    assert written["kinds"].keys() <= KINDS.keys()
    medians = [kind["median"] for kind in written["kinds"].values()]
    assert medians == sorted(medians, reverse=True)
    assert written["grpo_groups_with_signal"] == pytest.approx(grpo_signal(log_p.exp(), 4))
    quantiles = [written["log10_quantiles"][q] for q in ("0.05", "0.25", "0.5", "0.75", "0.95")]
    assert len(written["log10_quantiles"]) == 5
    assert quantiles == sorted(quantiles)
    low, high = (value.item() / math.log(10) for value in (log_p.min(), log_p.max()))
    assert low <= quantiles[0] < quantiles[-1] <= high
    assert written["base"].keys() >= {"p_at_1", "p_at_4", "maj_at_4", "maj_at_4_low", "maj_at_4_high"}

    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    test = load_split(tmp_path / "data", "test").to_list()
    assert [item["id"] for item in samples] == [row["id"] for row in test]
    assert all(len(item["answers"]) == 4 for item in samples)
