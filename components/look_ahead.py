"""What each arm does from the base model on: its gradient there, and a few real steps on a copy of the weights.

The copy is trained as the arm would begin, with an optimizer of its own, and log P of examples that it did not train on
is measured before, midway and behind. Every figure is measured; only what comes later is extrapolated.
"""

import gc
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.config import Arm, Settings
from components.data.example import Example
from components.data.split_files import example, load_split
from components.errors import UserError
from components.evaluation.metrics import Values, bootstrap, finite
from components.forecast import Forecast, Gradient, escape_times, half_escape
from components.methods import Method
from components.objective.estimators import amplification_bias
from components.policy.model import Codec, load_tokenizer
from components.probe import grpo_signal, log_success
from components.progress import progress, say
from components.randomness import derive_seed
from components.rollout.engine import RolloutEngine
from components.rollout.open import open_engine, sampled_model
from components.training.groups import GroupSampler
from components.training.ranks import Ranks
from components.training.trainer import Trainer, give_weights, open_trainer
from components.training.turn import Turn
from components.training.zero import start_ranks

BATCHES = 2  # whose gradients are compared


def look_ahead(settings: Settings, log_p: Sequence[float | None], *, data: Path, base: Path) -> list[Forecast]:
    """A forecast for every arm of the settings; all processes share the work, and each of them gets the forecasts.

    log_p: of the probed examples under the base model, in nats, None for log 0.

    Raises:
        UserError: the data or the base model cannot be used.
    """
    arms = [Arm.parse(name) for name in settings.arms]
    say(_cost(settings, len(arms)))
    start_ranks()
    ranks = Ranks()
    train = load_split(data, "train")
    held_out = [example(row) for row in islice(load_split(data, "validation"), settings.probe.held_out)]
    codec = Codec(load_tokenizer(base), settings.model, chat=settings.task.start == "warm")
    found = []
    with open_engine(settings, sampled_model(settings, base), base, codec.markers, ranks) as engine:
        look = _Look(settings, engine, codec, held_out)
        for arm in progress(arms, "look ahead"):
            found.append(look.ahead(arm, train, base, log_p))
            gc.collect()  # of the arm's weights and optimizer, before the next one's come
    return found


class _Look:
    """What all arms' look-aheads share: the engine, with weights of its own, and the held-out examples."""

    def __init__(self, settings: Settings, engine: RolloutEngine, codec: Codec, held_out: list[Example]) -> None:
        self.settings, self.engine, self.codec, self.held_out = settings, engine, codec, held_out
        self.before: Tensor | None = None  # log P under the base model, which is every arm's

    def ahead(self, arm: Arm, train: Sequence[Any], base: Path, log_p: Sequence[float | None]) -> Forecast:
        """One arm's forecast; train: the training split. log_p: as in look_ahead."""
        skipping = self.settings.train.model_copy(update={"non_finite": "skip"})  # it would end the other arms' too
        settings, seed = self.settings.model_copy(update={"train": skipping}), derive_seed("forecast")
        trainer = open_trainer(settings, arm, seed, base)
        ranks = {"rank": trainer.ranks.rank, "ranks": trainer.ranks.size}
        sampler = GroupSampler(settings, arm, seed, train, self.codec, **ranks)
        if self.before is None:
            self.before = self._log_p(trainer)
        gradient = self._gradient(arm, trainer, sampler)
        curves: list[dict[str, float]] = []
        steps, midway = _steps(self.settings), self.before
        for step in progress(range(steps), f"look ahead {arm.name}"):
            if step and step == steps // 2:
                midway = self._log_p(trainer)
            give_weights(self.settings, trainer, self.engine)
            turn = Turn.at(arm, step, settings.train.steps, curves)
            report = trainer.update(sampler.groups(self.engine, step), step, turn)
            curves.append(report.metrics() | turn.figures(arm, report.mean_log_p, curves))
        sides = (self.before.numpy(), midway.numpy(), self._log_p(trainer).numpy())
        trainer.close()
        return self._told(arm, gradient, log_p, *sides)

    def _log_p(self, trainer: Trainer) -> Tensor:
        give_weights(self.settings, trainer, self.engine)
        return log_success(self.engine, trainer, self.codec, self.held_out, self.settings)

    def _gradient(self, arm: Arm, trainer: Trainer, sampler: GroupSampler) -> Gradient:
        found = []
        for batch in range(BATCHES):
            give_weights(self.settings, trainer, self.engine)  # again, for an engine may have given its memory back
            found.append(trainer.gradient(sampler.groups(self.engine, batch), batch))
        (one, _), (other, _) = found
        sizes = [gradient.norm().item() for gradient, _ in found]
        samples = [value for _, report in found for value in report.effective_samples if value > 0]
        effective = float(np.mean(samples)) if samples else None
        return Gradient(
            norm=float(np.mean(sizes)),
            rms=float(np.mean(sizes)) / len(one) ** 0.5,
            epsilon=self.settings.train.adam_epsilon if self.settings.train.optimizer == "adamw" else None,
            agreement=finite((one @ other).item() / math.prod(sizes)) if all(sizes) else None,
            effective_samples=effective,
            bias=amplification_bias(arm.q, samples, self.settings.rollout.group_size) if samples and arm.q else None,
        )

    def _told(
        self,
        arm: Arm,
        gradient: Gradient,
        log_p: Sequence[float | None],
        before: Values,
        midway: Values,
        after: Values,
    ) -> Forecast:
        settings, resamples = self.settings, self.settings.evaluation.bootstrap
        share = with_gradient(arm, log_p, settings.rollout.group_size)
        possible = np.isfinite(before) & np.isfinite(after)
        if not possible.any():
            raise UserError(
                f"no rationale made the gold answer of any of {len(before)} validation examples possible; look at the"
                " answers, raise rollout.max_new_tokens, or set probe.look_ahead to 0."
            )
        steps = _steps(settings)
        times = escape_times(before, midway, after, steps)
        escape_step, escape_interval = half_escape(times, resamples=resamples)
        gains = (after - before)[possible]
        return Forecast(
            arm=arm.name,
            steps=steps,
            examples_with_gradient=share,
            batches_with_gradient=1 - (1 - share) ** settings.train.groups_per_step,
            gradient=gradient,
            gain=bootstrap(gains, resamples=resamples, seed=settings.evaluation.seed),
            escape_step=escape_step,
            escape_interval=escape_interval,
            run_steps=settings.train.steps,
            before=[finite(value) for value in before],
            midway=[finite(value) for value in midway],
            after=[finite(value) for value in after],
        )


def with_gradient(arm: Arm, log_p: Sequence[float | None], group_size: int) -> float:
    """The expected share of examples whose group has a gradient.

    log_p: of examples under the base model, in nats, None for log 0.
    """
    if not arm.samples_answers:
        return sum(value is not None for value in log_p) / len(log_p)
    p = torch.tensor([0.0 if value is None else math.exp(value) for value in log_p], dtype=torch.float64)
    if arm.method is Method.STAR:
        return (1 - (1 - p) ** group_size).mean().item()
    return grpo_signal(p, group_size)


def _steps(settings: Settings) -> int:
    """How many steps ahead; never more than a run has."""
    return min(settings.probe.look_ahead, settings.train.steps)


def _cost(settings: Settings, arms: int) -> str:
    steps, batch = _steps(settings), settings.train.groups_per_step * settings.rollout.group_size
    scored = (2 * arms + 1) * settings.probe.held_out * settings.rollout.group_size
    rollouts = arms * (steps + BATCHES) * batch + scored
    return (
        f"looking ahead {steps} steps for each of {arms} arms: some {rollouts:,} rollouts, as many as"
        f" {rollouts / batch:.0f} steps of training (probe.look_ahead = 0 leaves it out)"
    )
