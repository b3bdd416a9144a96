"""The groups of a step: which examples it draws, and their rollouts, ready to be trained on."""

from collections.abc import Sequence
from typing import Any

import torch

from components.config import Arm, Settings
from components.data.example import Example
from components.data.split_files import example
from components.evaluation.answers import exact_match
from components.policy.model import Codec
from components.randomness import derive_seed, generator
from components.rollout.engine import Rollout, RolloutEngine, Sampling
from components.rollout.sample import sample
from components.training.batches import Group


class GroupSampler:
    """Draws the examples of each step and samples their groups; all it does follows from the seed and the step.

    rows: the training split. rank, ranks: this process among those that share a step's examples.
    """

    def __init__(
        self,
        settings: Settings,
        arm: Arm,
        seed: int,
        rows: Sequence[Any],
        codec: Codec,
        *,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.settings, self.arm, self.seed, self.rows, self.codec = settings, arm, seed, rows, codec
        self.rank, self.ranks = rank, ranks

    def groups(self, engine: RolloutEngine, step: int) -> list[Group]:
        """This process's groups of a step, from the engine's weights.

        Raises:
            UserError: an example's prompt cannot be sampled, or the engine fails.
        """
        rollout, places, examples = self.settings.rollout, self._places, self._examples(step)
        sampling = Sampling(
            max_new_tokens=rollout.max_new_tokens,
            answer_reserve=rollout.answer_reserve,
            seed=derive_seed(self.seed, "rollout", step),
            answers=self.arm.samples_answers,
            places=tuple(places),
        )
        sampled = sample(engine, self.codec, examples, rollout.group_size, sampling)
        engine.sleep()
        return [self._group(*group) for group in zip(examples, sampled, places, strict=True)]

    def regroup(self, rollouts: Sequence[list[Rollout]], step: int) -> list[Group]:
        """This process's groups of a step from all processes' rollouts, by place, which were sampled before."""
        mine = [rollouts[place] for place in self._places]
        return [self._group(*group) for group in zip(self._examples(step), mine, self._places, strict=True)]

    @property
    def _places(self) -> range:
        """Of this process's groups among all those of a step."""
        return range(self.rank, self.settings.train.groups_per_step, self.ranks)

    def _examples(self, step: int) -> list[Example]:
        drawn = self._draw(step)
        return [drawn[place] for place in self._places]

    def _draw(self, step: int) -> list[Example]:
        """The examples of a step: every epoch is a new permutation of the training split."""
        size, batch = len(self.rows), self.settings.train.groups_per_step
        positions = range(step * batch, (step + 1) * batch)
        epochs = {position // size for position in positions}
        orders = {epoch: torch.randperm(size, generator=generator(self.seed, "order", epoch)) for epoch in epochs}
        return [example(self.rows[int(orders[p // size][p % size])]) for p in positions]

    def _group(self, item: Example, rollouts: list[Rollout], place: int) -> Group:
        if not self.arm.samples_answers:
            return gold_group(self.codec, item, rollouts, place)
        reward = [
            float(
                rollout.finish_reason == "stop"
                and exact_match(self.codec.answer_text(rollout.answer_ids), item.answers)
            )
            for rollout in rollouts
        ]
        answers = [rollout.answer_ids for rollout in rollouts]
        return Group(rollouts[0].prompt_ids, rollouts, answers, reward, item.id, place, item.kind)


def gold_group(codec: Codec, item: Example, rollouts: list[Rollout], place: int) -> Group:
    """An example's rollouts with its gold answer behind each rationale."""
    gold = codec.gold_answer(item.answers[0])
    return Group(rollouts[0].prompt_ids, rollouts, [gold] * len(rollouts), None, item.id, place, item.kind)
