"""Sampling answers from a policy and counting the right ones."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from components.config import EvaluationSettings, RolloutSettings
from components.data.example import Example
from components.evaluation.answers import exact, is_correct, normalize, same_value
from components.evaluation.metrics import Estimate, bootstrap, majority, pass_at_k
from components.policy.model import Codec
from components.progress import progress
from components.randomness import derive_seed
from components.rollout.engine import Alone, Peers, Rollout, RolloutEngine, Sampling
from components.rollout.sample import sample


@dataclass(frozen=True)
class Scored:
    """One example's samples: what was answered and what of it was right, in sampling order."""

    id: str
    answers: list[str]  # the sampled answers
    correct: list[bool]  # by substring, as the paper evaluates
    exact: list[bool]  # by equality after normalisation
    vote: str  # the most frequent normalised answer
    vote_correct: bool
    value: list[bool] | None = None  # by value and rounding; FinQA alone
    kind: str = ""  # of the example
    log_p: float | None = None  # of the gold answer, in nats, where it was asked for
    rationale: str = ""  # of the first answer


@dataclass(frozen=True)
class Evaluation:
    """What a policy scores on some examples. k is the number of samples of each prompt."""

    k: int
    p_at_1: Estimate  # mean accuracy of a sample
    p_at_k: Estimate  # any of k is right
    maj_at_k: Estimate  # the most frequent answer is right
    exact_at_1: Estimate  # p_at_1 by exact match
    scored: list[Scored]
    value_at_1: Estimate | None = None  # p_at_1 by value; FinQA alone

    def figures(self) -> dict[str, float]:
        """The figures by their metric names, as fractions of 1, with `_low` and `_high` for the 95% interval."""
        named = {
            "p_at_1": self.p_at_1,
            f"p_at_{self.k}": self.p_at_k,
            f"maj_at_{self.k}": self.maj_at_k,
            "exact_at_1": self.exact_at_1,
        }
        if self.value_at_1 is not None:
            named["value_at_1"] = self.value_at_1
        return {
            name + suffix: value
            for name, estimate in named.items()
            for suffix, value in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high))
        }

    def by_kind(self) -> dict[str, float]:
        """p_at_1 and maj_at_k of each kind of example, as kinds/KIND/p_at_1; empty where kinds are not told apart."""
        figures = {}
        for kind in sorted({item.kind for item in self.scored if item.kind}):
            members = [item for item in self.scored if item.kind == kind]
            figures[f"kinds/{kind}/p_at_1"] = float(np.mean([item.correct for item in members]))
            figures[f"kinds/{kind}/maj_at_{self.k}"] = float(np.mean([item.vote_correct for item in members]))
        return figures

    def mean_log_p(self) -> dict[str, float]:
        """The mean of log P over the examples, in nats, as log_p; empty where it was not asked for.

        Examples whose gold answer no rationale made possible have none; where there are some, log_p_impossible is their
        share.
        """
        known = [item.log_p for item in self.scored if item.log_p is not None]
        finite = [value for value in known if math.isfinite(value)]
        found = {"log_p": float(np.mean(finite))} if finite else {}
        return found | ({"log_p_impossible": 1 - len(finite) / len(known)} if len(finite) < len(known) else {})

    def write(self, path: Path) -> None:
        """Write every example's samples as JSON Lines."""
        with path.open("w", encoding="utf-8") as file:
            for item in self.scored:
                known = {name: value for name, value in asdict(item).items() if value is not None}
                file.write(json.dumps(known, ensure_ascii=False) + "\n")


def evaluate(
    engine: RolloutEngine,
    codec: Codec,
    examples: Sequence[Example],
    task: str,
    rollout: RolloutSettings,
    settings: EvaluationSettings,
    peers: Peers | None = None,
) -> Evaluation:
    """Sample settings.samples answers of every example and score them; equal seeds give equal figures.

    peers: the processes that share the examples; each of them gets the whole evaluation.
    """
    peers = peers or Alone()
    answered = answer(engine, codec, examples, task, rollout, settings, peers, description="evaluate")
    return summarize(peers.merge({place: scored for place, scored, _ in answered}), settings)


def answer(
    engine: RolloutEngine,
    codec: Codec,
    examples: Sequence[Example],
    task: str,
    rollout: RolloutSettings,
    settings: EvaluationSettings,
    peers: Peers,
    *,
    description: str,
) -> list[tuple[int, Scored, list[Rollout]]]:
    """The place of each of this process's examples, its score, and the answers that were sampled for it.

    peers: the processes that share the examples, a batch each in turn: the figures do not depend on their number where
        the engine is deterministic.
    """
    at_once = max(1, rollout.batch_rollouts // settings.samples)
    batches = range(0, len(examples), at_once)[peers.rank :: peers.size]
    found: list[tuple[int, Scored, list[Rollout]]] = []
    for first in progress(batches, description):
        batch = examples[first : first + at_once]
        sampling = Sampling(
            max_new_tokens=rollout.max_new_tokens,
            answer_reserve=rollout.answer_reserve,
            seed=derive_seed(settings.seed, "evaluate", first),
        )
        groups = sample(engine, codec, batch, settings.samples, sampling)
        for place, (example, group) in enumerate(zip(batch, groups, strict=True), first):
            answers = [codec.answer_text(rollout.answer_ids) for rollout in group]
            scored = score(example, answers, task)
            found.append((place, replace(scored, rationale=codec.text(group[0].rationale_ids)), group))
    return found


def score(example: Example, answers: list[str], task: str) -> Scored:
    """Judge the sampled answers to one example, each by itself and by the vote of all of them.

    task: decides how answers are normalised, and whether numbers are compared by value (FinQA).
    """
    votes = [normalize(answer, task) for answer in answers]
    correct = [is_correct(answer, example.answers, task) for answer in answers]
    elected = majority(votes)
    return Scored(
        id=example.id,
        answers=answers,
        correct=correct,
        exact=[exact(answer, example.answers, task) for answer in answers],
        vote=votes[elected],
        vote_correct=correct[elected],
        value=[same_value(answer, example.answers) for answer in answers] if task == "finqa" else None,
        kind=example.kind,
    )


def summarize(scored: list[Scored], settings: EvaluationSettings) -> Evaluation:
    """The figures of some scored examples, with bootstrap intervals over the examples."""
    correct = np.array([item.correct for item in scored])
    by_example = {
        "p_at_1": correct.mean(1),
        "p_at_k": pass_at_k(correct, settings.samples),
        "maj_at_k": np.array([item.vote_correct for item in scored], dtype=np.float64),
        "exact_at_1": np.array([item.exact for item in scored]).mean(1),
    }
    values = [item.value for item in scored if item.value is not None]
    if values:
        by_example["value_at_1"] = np.array(values).mean(1)
    estimates = {
        name: bootstrap(values, resamples=settings.bootstrap, seed=settings.seed) for name, values in by_example.items()
    }
    return Evaluation(k=settings.samples, scored=scored, **estimates)
