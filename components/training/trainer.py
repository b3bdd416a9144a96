"""The policy under training: one update from one step's rollouts, on any number of processes."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from components.config import Arm, Settings, TrainSettings
from components.errors import UserError
from components.methods import Method
from components.objective import estimators, importance
from components.objective.estimators import Coefficients
from components.policy.logprobs import Row, RowBatch, Scorer, sequence_logprobs
from components.policy.lora import adapters, add_adapters
from components.randomness import generator
from components.rollout.engine import RolloutEngine
from components.rollout.transformers_engine import TransformersEngine
from components.training.batches import Group, GroupSlice, cut, micro_batches
from components.training.coefficients import by_rewards, by_weights
from components.training.ranks import Ranks
from components.training.turn import Turn
from components.training.update_report import RolloutWeights, UpdateReport
from components.training.zero import discard_gradients, full_weights, load_policy, open_deepspeed, start_ranks


def open_trainer(settings: Settings, arm: Arm, seed: int, base: Path) -> "Trainer":
    """A trainer of the model in a Hugging Face folder; all processes open it together.

    Raises:
        UserError: nothing usable lies there.
    """
    start_ranks()
    policy = load_policy(base, settings.train, dtype=settings.model.dtype)
    return Trainer(policy, arm, settings.train, seed=seed)


def give_weights(settings: Settings, trainer: "Trainer", engine: RolloutEngine) -> None:
    """Let the engine have the trainer's weights, as it takes them; every process has to."""
    if isinstance(engine, TransformersEngine) and engine.model is trainer.policy:
        engine.load_weights(())  # it has them
    elif settings.rollout.transfer == "adapters":
        engine.load_weights(adapters(trainer.policy))
    else:
        engine.load_weights(trainer.weights())


class Trainer:
    """Updates a policy by one weighted log-likelihood, whatever the estimator.

    Every process calls the same methods, each with its own groups of the step. A group is never split between them, so
    the estimate does not depend on their number.
    """

    def __init__(self, policy: PreTrainedModel, arm: Arm, settings: TrainSettings, *, seed: int) -> None:
        start_ranks()
        self.ranks = Ranks()
        if settings.lora_rank:
            add_adapters(policy, settings.lora_rank, seed)
        if settings.gradient_checkpointing:
            policy.gradient_checkpointing_enable({"use_reentrant": False})
            policy.train()
        self.policy, self.arm, self.settings, self.seed = policy, arm, settings, seed
        self.turn = Turn.at(arm, 0, settings.steps, [])
        self.scorer = Scorer(policy)
        self.watch = _Watch(self.scorer)
        self.engine = open_deepspeed(self.scorer, settings)
        self.own_model = policy if settings.zero_stage < 3 else None  # that a sampler may use, for it is whole

    def update(self, groups: Sequence[Group], step: int, turn: Turn | None = None) -> UpdateReport:
        """One optimizer step from this process's groups of a step; none is taken where no group carries a gradient.

        The gradient is - mean over all groups and rollouts of [score * grad log p(z) + path * grad log p(y given z)].

        turn: the step's estimator and q; None: those of a run of which nothing is known but the step's number.

        Raises:
            UserError: a loss or a gradient is not finite, and train.non_finite is `stop`.
        """
        self.turn = turn or Turn.at(self.arm, step, self.settings.steps, [])
        report = self._accumulate_all(groups, step)
        if report.not_finite:
            discard_gradients(self.engine)
            self._complain(report.not_finite, step)
        # A step on which nothing carries a gradient must not move the weights by momentum alone.
        elif report.without_gradient < len(report.p):
            self._set_learning_rate(step)
            report.grad_norm = self._step()
        else:
            discard_gradients(self.engine)
        return report

    def gradient(self, groups: Sequence[Group], step: int) -> tuple[Tensor, UpdateReport]:
        """The gradient that an update would follow, before clipping, and what it saw; no step is taken.

        Returns it flat, [number of trained weights] in float32 on their device, whole on every process.
        """
        self.turn = Turn.at(self.arm, step, self.settings.steps, [])
        trained = [parameter for parameter in self.scorer.parameters() if parameter.requires_grad]
        # Where ZeRO 3 has sharded a weight, its own shape is empty.
        shapes = [getattr(parameter, "ds_shape", parameter.shape) for parameter in trained]
        sums = [torch.zeros(shape, device=parameter.device) for parameter, shape in zip(trained, shapes, strict=True)]
        hooks = [parameter.register_hook(partial(_add, total)) for parameter, total in zip(trained, sums, strict=True)]
        report = self._accumulate_all(groups, step)
        discard_gradients(self.engine)
        for hook in hooks:
            hook.remove()
        gradient = torch.cat([total.flatten() for total in sums])
        if self.ranks.size > 1:
            torch.distributed.all_reduce(gradient)
        return gradient / self.ranks.size, report

    def log_p(self, groups: Sequence[Group]) -> list[float]:
        """log P of every group's answer by its rationales, in nats: the log of their mean w; may be -inf.

        groups: this process's; every process has to ask, if only for none.
        """
        most = self.settings.micro_batch_tokens
        whole = [GroupSlice(group, tuple(range(len(group.rollouts)))) for group in groups]
        found = self._score([part for one in whole for part in cut(one, most)], UpdateReport())
        return [estimators.log_mean(found[id(group)][:1]).item() for group in groups]

    def _accumulate_all(self, groups: Sequence[Group], step: int) -> UpdateReport:
        """Leave the whole step's gradient with DeepSpeed; returns what all processes saw."""
        report = UpdateReport(rollouts=sum(len(group.rollouts) for group in groups))
        rollouts = sum(self.ranks.gather(report.rollouts))
        batches = micro_batches(self._slices(groups, step, report), self.settings.micro_batch_tokens)
        passes = self.ranks.most(len(batches))
        for number in range(passes):
            self.engine.set_gradient_accumulation_boundary(number == passes - 1)
            self._accumulate(batches[number] if number < len(batches) else [], rollouts, step, report)
        return UpdateReport.merge(self.ranks.gather(report))

    def _complain(self, examples: Sequence[str], step: int) -> None:
        if self.settings.non_finite == "stop":
            raise UserError(
                f"step {step + 1}: the loss or its gradient is not finite for example(s) {', '.join(examples)}; look at"
                " them, lower train.learning_rate, or set train.non_finite to skip."
            )

    def _slices(self, groups: Sequence[Group], step: int, report: UpdateReport) -> list[GroupSlice]:
        """What needs a gradient pass, in slices that fit.

        Where there are rewards they give the coefficients. Others follow from log p(y given z): a group that fits is
        weighed in its gradient pass, one that does not is scored before, without a graph.
        """
        most = self.settings.micro_batch_tokens
        whole = [GroupSlice(group, tuple(range(len(group.rollouts)))) for group in groups]
        if self.arm.samples_answers:
            early = whole
            weighed = [self._coefficients(group, None, None, step, report) for group in groups]
        else:
            early = [part for part in whole if part.tokens > most]
            scored = self._score([part for one in early for part in cut(one, most)], report)
            weighed = [self._coefficients(part.group, *scored[id(part.group)], step, report) for part in early]
        known = {id(part.group) for part in early}
        slices = [part for part in whole if id(part.group) not in known]
        for part, coefficients in zip(early, weighed, strict=True):
            slices += cut(part.with_coefficients(coefficients).trained, most)
        return slices

    @torch.no_grad()
    def _score(self, slices: Sequence[GroupSlice], report: UpdateReport) -> dict[int, Tensor]:
        """log w and log r of whole groups from all their slices, [2, M] by the group's identity, without a graph."""
        found = {id(part.group): torch.zeros(2, len(part.group.rollouts)).double() for part in slices}
        batches = micro_batches(slices, self.settings.micro_batch_tokens)
        for number in range(self.ranks.most(len(batches))):
            slices = batches[number] if number < len(batches) else []
            values = self._forward(slices, report)[1:].cpu()
            for part, weights in _by_slice(slices, values):
                found[id(part.group)][:, list(part.members)] = weights.double()
        # ZeRO 3 has begun to gather weights for a way back that does not come.
        self.engine.empty_partition_cache()
        return found

    def _accumulate(self, slices: Sequence[GroupSlice], rollouts: int, step: int, report: UpdateReport) -> None:
        """Add one micro-batch's share of the gradient; rollouts counts those of the whole step.

        Without slices it is a pass for the other processes' sake, which wait for this one in every pass.
        """
        # What was scored before was compared with the sampler then.
        is_first = any(part.coefficients is None for part in slices) or self.arm.samples_answers
        values = self._forward(slices, report if is_first else UpdateReport())
        slices = [
            part if part.coefficients else part.with_coefficients(self._coefficients(part.group, *found, step, report))
            for part, found in _by_slice(slices, values.detach()[1:])
        ]
        trained = [part for part in (one.trained for one in slices) if part.members]
        if self._should_recompute(slices, trained):
            slices, values = trained, None  # the first graph goes before the second comes
            values = self._forward(slices, UpdateReport())
        loss = 0 * values[:2].sum()  # a masked importance weight is -inf
        for part, (of_rationale, of_answer, log_r) in _by_slice(slices, values):
            score, path = (weights.to(values.device) for weights in part.weights)
            if self.arm.samples_answers:
                score, path = score * log_r.exp(), path * log_r.exp()
            # A rollout of weight zero has log p(y) = -inf, and 0 * -inf would be NaN.
            terms = torch.where(score == 0, 0, score * of_rationale) + torch.where(path == 0, 0, path * of_answer)
            loss = loss - terms.sum() / rollouts
            report.trained += len(part.trained.members)
        self.engine.backward(loss * self.ranks.size)  # DeepSpeed averages over processes
        report.loss += loss.item()
        if not self.watch.finite():
            report.not_finite += [part.group.example for part in slices]

    def _forward(self, slices: Sequence[GroupSlice], report: UpdateReport) -> Tensor:
        """[3, rows]: log p of rationale and of answer, weighed by token where so set, and the log importance weight."""
        batch = self._collate(slices, report)
        logprobs = self.engine(batch)
        log_ratio = _log_ratio(slices, logprobs, batch, report)
        log_r = self._log_r(log_ratio, batch, report)
        if self._corrects("token"):
            ratios = self._bounded(log_ratio, report).exp()
            logprobs = torch.where(ratios == 0, 0, ratios * logprobs)
        return torch.stack([*sequence_logprobs(logprobs, batch), log_r])

    def _should_recompute(self, slices: Sequence[GroupSlice], trained: Sequence[GroupSlice]) -> bool:
        """Whether to read what carries a gradient once more rather than go back through all that was read.

        The way back costs twice the way there: 3 for each id trained against 2 for each id read, and what a pass costs
        besides: just below two thirds it was measured to lose. All processes decide as one, since they read together.
        """
        counts = self.ranks.gather([sum(part.tokens for part in some) for some in (slices, trained)])
        read, needed = (sum(column) for column in zip(*counts, strict=True))
        return 2 * needed < read

    def _corrects(self, level: str) -> bool:
        return self.settings.importance_weights != "none" and self.settings.importance_level == level

    def _log_r(self, log_ratio: Tensor, batch: RowBatch, report: UpdateReport) -> Tensor:
        """The log importance weight of each row's rollout as a whole, [rows]; 0 where rollouts are not weighed so."""
        rationale, answer = sequence_logprobs(log_ratio, batch)
        return self._bounded(rationale + answer, report) if self._corrects("sequence") else torch.zeros_like(rationale)

    def _bounded(self, log_ratio: Tensor, report: UpdateReport) -> Tensor:
        log_r = importance.bounded(log_ratio, self.settings.importance_weights, self.settings.importance_bound)
        report.at_bound.append((log_r != log_ratio).cpu())
        return log_r

    def _collate(self, slices: Sequence[GroupSlice], report: UpdateReport) -> RowBatch:
        if not slices:
            return self.scorer.collate([(0,)], [[Row((0,), (0,), 0)]])
        batch = self.scorer.collate([part.group.prompt for part in slices], [part.rows for part in slices])
        report.padding.append(batch.padding)
        return batch

    def _coefficients(
        self, group: Group, log_w: Tensor | None, log_r: Tensor | None, step: int, report: UpdateReport
    ) -> Coefficients:
        """Weigh a whole group, by its rewards or by log w and the log importance weights, [M] each."""
        report.kinds.append(group.kind)
        if log_w is None or log_r is None:
            reward = torch.tensor([group.reward], dtype=torch.float64)
            coefficients = by_rewards(self.turn, reward)
            report.p.append(reward.mean().item())
        else:
            log_r = log_r[None].cpu()
            log_w = log_w[None].cpu() + log_r
            draws = generator(self.seed, "paft", step, group.place)
            estimate = by_weights(self.turn, log_w, arm=self.arm, settings=self.settings, draws=draws)
            coefficients = importance.reweigh(estimate, log_r)
            if self.turn.method is Method.GARL_SCORE:  # behind reweigh, which tells the baseline by the path
                coefficients = coefficients.score_only
            self._report_weights(log_w, report)
        report.without_gradient += int((~coefficients.carries_gradient).sum())
        w = [] if log_w is None else log_w[0].exp().tolist()
        report.rollout_weights.append(
            RolloutWeights(group.place, w, coefficients.score[0].tolist(), coefficients.path[0].tolist())
        )
        return coefficients

    def _report_weights(self, log_w: Tensor, report: UpdateReport) -> None:
        """What the weights of one group, [1, M], say."""
        log_p = estimators.log_mean(log_w)
        report.p += log_p.exp().tolist()
        report.log_p += log_p.tolist()
        if self.turn.q is not None:
            report.effective_reward += estimators.effective_reward(log_w, self.turn.q).mean(1).tolist()
        else:
            report.q += estimators.each_commitment(log_w).mean(1).tolist()
        report.effective_samples += estimators.effective_sample_size(log_w).tolist()

    def _set_learning_rate(self, step: int) -> None:
        left = 1 - step / self.settings.steps if self.settings.schedule == "linear" else 1.0
        for parameters in self.engine.optimizer.param_groups:
            parameters["lr"] = self.settings.learning_rate * left

    def _step(self) -> float:
        """Take the optimizer step; return the gradient's norm before clipping."""
        norm = None
        if self.settings.zero_stage == 0 and next(self.policy.parameters()).dtype == torch.float32:
            # There DeepSpeed clips without keeping the norm.
            gradients = [p.grad for p in self.engine.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients).item()
        self.engine.step()
        return norm if norm is not None else float(self.engine.get_global_grad_norm())

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight of the policy as a saved model names it; every process has to ask."""
        return full_weights(self.policy)

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state, as DeepSpeed shards them; every process has to."""
        self.engine.save_checkpoint(str(folder), tag="deepspeed")

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote; every process has to, and as many as wrote it."""
        self.engine.load_checkpoint(str(folder), tag="deepspeed")

    def close(self) -> None:
        """Give back what DeepSpeed holds; the trainer cannot be used any more."""
        self.watch.close()
        self.engine.destroy()


class _Watch:
    """Sees every gradient on its way and remembers whether one was not finite."""

    def __init__(self, scorer: Scorer) -> None:
        self.sums: list[Tensor] = []
        trained = (parameter for parameter in scorer.parameters() if parameter.requires_grad)
        self.hooks = [
            parameter.register_hook(lambda gradient: self.sums.append(gradient.sum())) for parameter in trained
        ]

    def finite(self) -> bool:
        """Whether all gradients since it was last asked were."""
        sums, self.sums = self.sums, []
        return not sums or bool(torch.stack([value.float() for value in sums]).isfinite().all())

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()


def _add(total: Tensor, gradient: Tensor) -> None:
    total.add_(gradient)


def _by_slice(slices: Sequence[GroupSlice], values: Tensor) -> list[tuple[GroupSlice, Tensor]]:
    """Each slice with its part of [..., rows]; nothing of a batch that stands in for none."""
    sizes = [len(part.members) for part in slices]
    return list(zip(slices, values[..., : sum(sizes)].split(sizes, -1), strict=True)) if slices else []


def _log_ratio(slices: Sequence[GroupSlice], logprobs: Tensor, batch: RowBatch, report: UpdateReport) -> Tensor:
    """log p of the trainer minus the sampler's, [T], over every scored id; 0 for those that nobody sampled (gold)."""
    log_ratio = torch.zeros_like(logprobs.detach())
    if not slices:
        return log_ratio
    answers_sampled = slices[0].group.reward is not None
    sampled: list[float] = []
    for rollout in (part.group.rollouts[member] for part in slices for member in part.members):
        thought = len(rollout.rationale_ids)
        sampled += rollout.logprobs[: thought - rollout.forced_end]
        sampled += rollout.logprobs[thought:] if answers_sampled else ()
    was_sampled = torch.ones_like(batch.is_answer) if answers_sampled else ~batch.is_answer
    log_ratio[was_sampled] = logprobs.detach()[was_sampled] - torch.tensor(sampled).to(logprobs)
    report.mismatch.append(-log_ratio[was_sampled].cpu())
    return log_ratio
