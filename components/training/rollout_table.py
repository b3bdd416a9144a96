"""A table of rollouts that were trained on, for people to read."""

from collections.abc import Sequence
from typing import Any

import torch

from components.policy.model import Codec
from components.training.batches import Group
from components.training.update_report import RolloutWeights, UpdateReport


def rollout_table(
    groups: Sequence[Group], report: UpdateReport, codec: Codec, most: int, draws: torch.Generator
) -> dict[str, list[Any]]:
    """Columns of at most so many of a step's rollouts, drawn at random from this process's groups."""
    by_place = {group.place: group for group in groups}
    rows = [
        _row(by_place[weights.place], weights, index, codec)
        for weights in report.rollout_weights
        if weights.place in by_place  # other processes' groups are not here
        for index in range(len(weights.score))
    ]
    drawn = torch.randperm(len(rows), generator=draws)
    chosen = [rows[index] for index in sorted(drawn[:most].tolist())]
    return {name: [row[name] for row in chosen] for name in (rows[0] if rows else ())}


def _row(group: Group, weights: RolloutWeights, index: int, codec: Codec) -> dict[str, Any]:
    rollout = group.rollouts[index]
    return {
        "example": group.example,
        "prompt": codec.text(group.prompt),
        "rationale": codec.text(rollout.rationale_ids),
        "answer": codec.text(group.answers[index]),  # the gold one, or the sampled one where that is scored
        "w": weights.w[index] if weights.w else "",
        "reward": "" if group.reward is None else group.reward[index],
        "score": weights.score[index],
        "path": weights.path[index],
        "finish_reason": rollout.finish_reason,
        "forced": rollout.forced_end > 0,
    }
