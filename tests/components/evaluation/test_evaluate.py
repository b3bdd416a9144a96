"""From sampled ids to figures: chosen samples with figures by hand, then the real sampler and its seeds."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from components.config import EvaluationSettings, RolloutSettings
from components.data.example import Example
from components.data.skills import gold_answer, problem
from components.evaluation.evaluate import Evaluation, answer, evaluate, score, summarize
from components.policy.embedded import build_model, build_tokenizer
from components.policy.model import Codec
from components.rollout.engine import Alone, Rollout, RolloutEngine, Sampling
from components.rollout.transformers_engine import TransformersEngine
from tests.conftest import small_settings


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="module")
def codec(tokenizer: PreTrainedTokenizerFast) -> Codec:
    return Codec(tokenizer, small_settings().model, chat=False)


class Chosen:
    """An engine that gives the answers it was told to, by prompt, and remembers what it was asked."""

    def __init__(self, codec: Codec, answers: dict[str, list[str]]) -> None:
        self.codec, self.answers = codec, {codec.prompt(prompt): texts for prompt, texts in answers.items()}
        self.asked: list[tuple[int, int, Sampling]] = []

    def generate(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[list[Rollout]]:
        self.asked.append((len(prompts), n, sampling))
        return [[self._rollout(tuple(prompt), text) for text in self.answers[tuple(prompt)]] for prompt in prompts]

    def _rollout(self, prompt: tuple[int, ...], text: str) -> Rollout:
        rationale, ids = self.codec.prompt("<think>a:1</think>"), self.codec.prompt(text)
        return Rollout(prompt, rationale, ids, (0.0,) * (len(rationale) + len(ids)), "stop", 0)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None: ...


def settings(**others: Any) -> EvaluationSettings:
    return small_settings().evaluation.model_copy(update=others)


def rollout_settings(**others: Any) -> RolloutSettings:
    return small_settings().rollout.model_copy(update=others)


def run(engine: RolloutEngine, codec: Codec, examples: Sequence[Example], **others: Any) -> Evaluation:
    return evaluate(engine, codec, examples, "skills", rollout_settings(), settings(**others))


def example(name: str, *answers: str) -> Example:
    return Example(name, f"{name}?", answers, name)


# Chosen samples


def test_figures_by_hand(codec: Codec) -> None:
    """Four samples of four questions; what is thought is no answer, and the end of a turn is no part of one."""
    engine = Chosen(
        codec,
        {
            "most?": ["a:1<end>", "a:2<end>", "a:1<end>", " A:1 <end>"],
            "tie?": ["a:2", "a:1", "a:1", "a:2"],
            "once?": ["a:2", "a:2", "a:1", "a:3"],
            "none?": ["", "a:", "a:2", "1"],
        },
    )
    result = run(engine, codec, [example(name, "a:1") for name in ("most", "tie", "once", "none")])
    assert result.k == 4
    assert [item.id for item in result.scored] == ["most", "tie", "once", "none"]
    assert [item.vote for item in result.scored] == ["a:1", "a:2", "a:2", ""]
    assert [item.vote_correct for item in result.scored] == [True, False, False, False]
    assert [item.correct for item in result.scored] == [
        [True, False, True, True], [False, True, True, False], [False, False, True, False], [False] * 4,
    ]  # fmt: skip
    assert result.scored[0].answers == ["a:1", "a:2", "a:1", "A:1"]
    figures = result.figures()
    assert figures["p_at_1"] == pytest.approx(6 / 16)
    assert figures["p_at_4"] == pytest.approx(3 / 4)
    assert figures["maj_at_4"] == pytest.approx(1 / 4)
    assert figures["exact_at_1"] == pytest.approx(6 / 16)
    assert set(figures) == {
        f"{name}{end}" for name in ("p_at_1", "p_at_4", "maj_at_4", "exact_at_1") for end in ("", "_low", "_high")
    }
    for name in ("p_at_1", "p_at_4", "maj_at_4", "exact_at_1"):
        assert 0 <= figures[f"{name}_low"] <= figures[name] <= figures[f"{name}_high"] <= 1


@pytest.mark.parametrize(("samples", "right"), [(["a:1", "a:2"], True), (["a:2", "a:1"], False)])
def test_ties_go_to_the_answer_that_came_first(samples: list[str], right: bool, codec: Codec) -> None:
    result = run(Chosen(codec, {"tie?": samples}), codec, [example("tie", "a:1")], samples=2)
    assert result.maj_at_k.value == right


def test_an_answer_may_stand_in_a_longer_one_or_be_an_alias_but_is_exact_alone(codec: Codec) -> None:
    engine = Chosen(codec, {"q?": ["it is a:1", "a:1", "one", "a: 1"]})
    result = run(engine, codec, [example("q", "a:1", "one")])
    assert result.scored[0].correct == [True, True, True, False]
    assert result.scored[0].exact == [False, True, True, False]
    assert (result.p_at_1.value, result.exact_at_1.value) == (0.75, 0.5)


def test_finqas_numbers_are_also_compared_by_value(codec: Codec, tmp_path: Path) -> None:
    engine = Chosen(codec, {"q?": ["34.7%", "0.347", "34.72 percent", "34.7"], "y?": ["yes", "Yes.", "no", ""]})
    examples = [example("q", "34.7%"), example("y", "yes")]
    result = evaluate(engine, codec, examples, "finqa", rollout_settings(), settings())
    assert [item.value for item in result.scored] == [[True, True, True, False], [True, True, False, False]]
    assert [item.exact for item in result.scored] == [[True, False, False, False], [True, True, False, False]]
    figures = result.figures()
    assert (figures["value_at_1"], figures["exact_at_1"]) == (5 / 8, 3 / 8)
    assert figures["value_at_1_low"] <= 5 / 8 <= figures["value_at_1_high"]
    result.write(tmp_path / "samples.jsonl")
    assert json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0])["value"] == [True, True, True, False]


def test_votes_for_equal_answers_of_different_looks_are_counted_together(codec: Codec) -> None:
    engine = Chosen(codec, {"q?": ["a:2", "A:1", "a:1", "a:2 "]})
    result = run(engine, codec, [example("q", "a:1")])
    assert (result.scored[0].vote, result.maj_at_k.value) == ("a:2", 0)


def test_samples_are_written_one_line_an_example(codec: Codec, tmp_path: Path) -> None:
    engine = Chosen(codec, {"é?": ["ü", "x"], "b?": ["a:1", "y"]})
    result = run(engine, codec, [example("é", "ü"), example("b", "a:1")], samples=2)
    result.write(tmp_path / "samples.jsonl")
    text = (tmp_path / "samples.jsonl").read_text(encoding="utf-8")
    assert "ü" in text
    assert [json.loads(line) for line in text.splitlines()] == [
        {"id": name, "answers": [right, wrong], "correct": [True, False], "exact": [True, False], "vote": right,
         "vote_correct": True, "kind": "", "rationale": "<think>a:1</think>"}
        for name, right, wrong in (("é", "ü", "x"), ("b", "a:1", "y"))
    ]  # fmt: skip


def test_batches_hold_no_more_rollouts_than_set_and_each_has_its_own_seed(codec: Codec) -> None:
    engine = Chosen(codec, {f"{n}?": ["x"] * 4 for n in range(7)})
    examples = [example(str(n), "a:1") for n in range(7)]
    evaluate(engine, codec, examples, "skills", rollout_settings(batch_rollouts=12), settings())
    evaluate(engine, codec, examples[:2], "skills", rollout_settings(batch_rollouts=3), settings(seed=1))
    assert [(prompts, n) for prompts, n, _ in engine.asked] == [(3, 4), (3, 4), (1, 4), (1, 4), (1, 4)]
    assert len({sampling.seed for _, _, sampling in engine.asked}) == 5
    for _, _, sampling in engine.asked:
        assert sampling.answers
        assert (sampling.max_new_tokens, sampling.answer_reserve, sampling.temperature) == (20, 8, 1)


def test_processes_share_the_examples_and_find_what_one_does(codec: Codec) -> None:
    examples = [example(str(n), "x" if n % 2 else "a:1") for n in range(7)]
    answers = {f"{n}?": ["x", "y", "x", "x"] for n in range(7)}
    found, asked = [], []
    for rank, ranks in ((0, 1), (0, 3), (1, 3), (2, 3)):
        engine, peers = Chosen(codec, answers), Alone()
        peers.rank, peers.size = rank, ranks
        options = (rollout_settings(batch_rollouts=8), settings(), peers)
        one = answer(engine, codec, examples, "skills", *options, description="")
        found.append([(place, scored) for place, scored, _ in one])
        asked.append([sampling.seed for _, _, sampling in engine.asked])
    assert [[place for place, _ in part] for part in found[1:]] == [[0, 1, 6], [2, 3], [4, 5]]
    assert sorted(chain(*found[1:]), key=lambda item: item[0]) == found[0]
    assert [seeds[0] for seeds in asked[1:]] == asked[0][:3]


# The real sampler


@pytest.mark.usefixtures("one_thread")
def test_one_seed_gives_the_same_samples_and_another_gives_others(
    tokenizer: PreTrainedTokenizerFast, codec: Codec
) -> None:
    examples = [
        Example(digits, problem(digits, "sort"), (gold_answer(digits, "sort"),), digits)
        for digits in ("3142", "0977", "5550")
    ]
    policy, results = build_model(tokenizer, seed=0), []
    for disturbance, seed in enumerate((0, 0, 1)):
        torch.manual_seed(disturbance)
        engine = TransformersEngine(policy, codec.markers, batch_rollouts=64)
        results.append(run(engine, codec, examples, seed=seed))
    one, same, other = results
    assert one == same
    assert one.figures() == same.figures()
    assert one.scored != other.scored
    assert len({text for item in one.scored for text in item.answers}) > 6


def test_figures_by_kind_count_the_examples_of_each() -> None:
    items = [replace(example(str(n), "a:1"), kind=kind) for n, kind in enumerate(["x", "y", "x", ""])]
    answers = [["a:1", "a:1"], ["b", "b"], ["b", "a:1"], ["a:1", "a:1"]]
    scored = [score(item, said, "skills") for item, said in zip(items, answers, strict=True)]
    found = summarize(scored, settings(samples=2))
    assert found.by_kind() == {
        "kinds/x/p_at_1": 0.75, "kinds/x/maj_at_2": 0.5, "kinds/y/p_at_1": 0, "kinds/y/maj_at_2": 0,
    }  # fmt: skip
    assert summarize(scored[3:], settings(samples=2)).by_kind() == {}
