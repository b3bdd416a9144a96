"""Rollouts for people to read: of the same few problems at every validation, one right and one wrong each."""

from collections.abc import Sequence
from typing import Any

from components.data.example import Example
from components.evaluation.evaluate import Scored
from components.policy.model import Codec
from components.rollout.engine import Rollout

PROBLEMS = 6
LONGEST = 1200  # characters of a text; of a longer one the middle is left out


def places_shown(examples: Sequence[Example]) -> set[int]:
    """The places of the problems that are shown: the first of each kind, then the first of all."""
    first_of_kind = {example.kind: place for place, example in reversed(list(enumerate(examples)))}
    return set([*sorted(first_of_kind.values()), *(set(range(len(examples))) - set(first_of_kind.values()))][:PROBLEMS])


def as_text(codec: Codec, example: Example, scored: Scored, rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """What train.json keeps of a problem: its text, the share of right samples, and the first right and wrong ones."""
    found: dict[bool, list[str]] = {}
    for rollout, answer, right in zip(rollouts, scored.answers, scored.correct, strict=True):
        found.setdefault(right, [_cut(codec.text(rollout.rationale_ids)), _cut(answer)])
    return {
        "id": example.id,
        "prompt": _cut(example.prompt),
        "gold": _cut(example.answers[0]),
        "share": sum(scored.correct) / len(scored.correct),
        "right": found.get(True),
        "wrong": found.get(False),
    }


def _cut(text: str) -> str:
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} […] {text[-half:]}"
