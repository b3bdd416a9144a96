"""Micro-batches: every rollout once, within the bound, and few."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from components.policy.logprobs import collate
from components.training.batches import GroupSlice, cut, micro_batches
from tests.components.training.by_hand import M, make_groups, whole

CPU = torch.device("cpu")


def run(batch: Sequence[GroupSlice]) -> int:
    """The ids that a batch runs."""
    return collate([part.group.prompt for part in batch], [part.rows for part in batch], CPU).ids.numel()


def distinct(part: GroupSlice) -> int:
    """How many of its rows are run, those alike once."""
    return len({row.read for row in part.rows})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bound", [1, 60, 200, 10**6])
def test_micro_batches_hold_every_rollout_once_within_the_bound(bound: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    shapes = torch.randint(1, 15, (20, 2), generator=random).tolist()
    groups = make_groups("garl", seed=seed, shapes=[(prompt, longest) for prompt, longest in shapes])
    slices = [part for one in whole(groups) for part in cut(one, bound)]
    batches = micro_batches(slices, bound)
    rollouts = [(part.group.place, member) for batch in batches for part in batch for member in part.members]
    assert sorted(rollouts) == [(place, member) for place in range(20) for member in range(M)]
    assert all(batches)
    assert all(run(batch) <= bound for batch in batches if len(batch) > 1 or distinct(batch[0]) > 1)
    assert all(run(batch) == sum(part.tokens for part in batch) for batch in batches)
    longest = [part.longest for batch in batches for part in batch]
    assert longest == sorted(longest)
    assert len(batches) == {1: sum(map(distinct, whole(groups))), 10**6: 1}.get(bound, len(batches))


def test_rollouts_alike_are_counted_once_and_stay_together() -> None:
    [group] = make_groups("garl", shapes=[(5, 6)])
    first, second, *_ = group.rollouts
    alike = replace(group, rollouts=[first, second, first, second, first], answers=[group.answers[0]] * 5)
    [part] = whole([alike])
    once, *_ = whole([replace(group, rollouts=[first, second], answers=group.answers[:2])])
    assert part.tokens == once.tokens == run([part])
    assert list(cut(part, once.tokens)) == [part]
    assert [part.members for part in cut(part, 1)] in ([(0, 2, 4), (1, 3)], [(1, 3), (0, 2, 4)])


def test_micro_batches_are_filled_before_a_new_one_begins() -> None:
    slices = whole(make_groups("garl", shapes=[(5, 5)] * 6))
    assert len({part.tokens for part in slices}) == 1
    assert [len(batch) for batch in micro_batches(slices, 2 * slices[0].tokens + 20)] == [2, 2, 2]
    assert micro_batches([], 100) == []
