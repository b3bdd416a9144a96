"""The groups of one step after the other, sampled before an update or, a step stale, while the one before runs.

Stale by one step, an update from theta_k has rollouts of theta_(k-1): those that were sampled while theta_(k-1) was
updated. Sampler and trainer then work at the same time, and a step takes as long as the slower of them. More would not
be faster: both handle one step's groups in turn. What the estimate owes to the older weights, importance weights
correct.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, NamedTuple, Self

from components.rollout.engine import Rollout, RolloutEngine
from components.training.batches import Group
from components.training.groups import GroupSampler


class Sampled(NamedTuple):
    """A step's groups, and how long sampling them took, beside whatever else was done meanwhile."""

    groups: list[Group]
    seconds: float


class GroupStream:
    """This process's groups of each step. Every process asks for every step, in order.

    renew: gives the engine the trainer's weights; called while nothing is sampled.
    stale: whether a step's groups are sampled while the step before is updated, by an engine in processes of its own.
    steps: of the whole run, however few of them are asked for.

    Use it as a context manager within the engine's: what is sampled when both are left ends with the engine.
    """

    def __init__(
        self, sampler: GroupSampler, engine: RolloutEngine, renew: Callable[[], None], *, stale: bool, steps: int
    ) -> None:
        self.sampler, self.engine, self.renew, self.stale, self.steps = sampler, engine, renew, stale, steps
        self.ahead: Future[Sampled] | None = None
        self._thread = ThreadPoolExecutor(1, "sampling")

    def step(self, step: int) -> Sampled:
        """The groups to update from at a step.

        Raises:
            UserError, TemporaryError: as RolloutEngine.generate, perhaps of the step before.
        """
        self.renew_after_sampling()
        if self.ahead is None:
            now = self._sample(step)
        else:
            now, self.ahead = self.ahead.result(), None
        if self.stale and step + 1 < self.steps:
            self.ahead = self._thread.submit(self._sample, step + 1)
        return now

    def renew_after_sampling(self) -> None:
        """Wait for what is being sampled, and give the engine the trainer's weights."""
        if self.ahead is not None:
            self.ahead.result()
        self.renew()

    def save(self) -> dict[int, list[dict[str, Any]]]:
        """The rollouts that were sampled ahead, by the places of their groups; waits for them."""
        groups = self.ahead.result().groups if self.ahead is not None else []
        return {group.place: [asdict(rollout) for rollout in group.rollouts] for group in groups}

    def load(self, saved: list[list[dict[str, Any]]], step: int) -> None:
        """Go on at a step with all processes' rollouts that were sampled ahead of it; [] where none were."""
        if saved:
            rollouts = [[_rollout(fields) for fields in members] for members in saved]
            self.ahead = Future()
            self.ahead.set_result(Sampled(self.sampler.regroup(rollouts, step), 0.0))

    def _sample(self, step: int) -> Sampled:
        started = time.perf_counter()
        groups = self.sampler.groups(self.engine, step)
        return Sampled(groups, time.perf_counter() - started)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._thread.shutdown(wait=False)


def _rollout(fields: dict[str, Any]) -> Rollout:
    """A rollout that JSON has made lists of."""
    return Rollout(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
