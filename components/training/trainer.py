"""The policy under training: one update from one step's rollouts, on any number of processes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from components.config import Arm, Method, Settings, TrainSettings
from components.errors import UserError
from components.objective import estimators, importance, rewards
from components.objective.commitment import ATTENUATION
from components.objective.estimators import Coefficients
from components.policy.logprobs import Row, RowBatch, Scorer, sequence_logprobs
from components.policy.lora import adapters, add_adapters
from components.randomness import generator
from components.rollout.engine import RolloutEngine
from components.rollout.transformers_engine import TransformersEngine
from components.training.batches import Group, Piece, cut, micro_batches
from components.training.ranks import Ranks
from components.training.turn import Turn
from components.training.zero import discard_gradients, full_weights, load_policy, open_deepspeed, start_ranks

BY_REWARD = {
    Method.GRPO: rewards.grpo,
    Method.DR_GRPO: rewards.dr_grpo,
    Method.RLOO: rewards.rloo,
    Method.MAXRL: rewards.maxrl,
    Method.STAR: rewards.star,
}


@dataclass(frozen=True)
class Weighed:
    """What a group's rollouts were worth, a value each.

    place: of the group in its step.
    w: p(y given x, z) of the gold answer, times the rollout's importance weight if there is one; empty where there are
        rewards.
    """

    place: int
    w: list[float]
    score: list[float]
    path: list[float]


@dataclass
class UpdateReport:
    """What one update saw, a value a group unless said otherwise; means are taken when it is logged."""

    p: list[float] = field(default_factory=list)  # w_bar, or the mean reward where no w exists
    log_p: list[float] = field(default_factory=list)  # of w_bar, in nats, which P itself may underflow; -inf at P = 0
    q: list[float] = field(default_factory=list)  # where each example has its own: its rollouts' mean
    kinds: list[str] = field(default_factory=list)  # of the examples, in the order of p
    effective_reward: list[float] = field(default_factory=list)
    effective_samples: list[float] = field(default_factory=list)
    without_gradient: int = 0  # groups
    rollouts: int = 0
    trained: int = 0  # rollouts that had a gradient pass
    not_finite: list[str] = field(default_factory=list)  # examples
    padding: list[float] = field(default_factory=list)  # share of places without an id, a value a pass
    loss: float = 0.0  # the surrogate whose gradient was taken, of the whole step
    grad_norm: float = 0.0  # before clipping, of the whole step
    mismatch: list[Tensor] = field(default_factory=list)  # log p of sampler minus trainer, [sampled ids] each
    at_bound: list[Tensor] = field(default_factory=list)  # which importance weights the bound changed
    weighed: list[Weighed] = field(default_factory=list)

    @classmethod
    def merge(cls, parts: Sequence["UpdateReport"]) -> "UpdateReport":
        """The report of a step from those of its processes."""
        merged = cls()
        for item in fields(cls):
            for part in parts:
                setattr(merged, item.name, getattr(merged, item.name) + getattr(part, item.name))
        return merged

    @property
    def mean_log_p(self) -> float | None:
        """The mean of log P, in nats, over the examples that have any chance; None where none has."""
        logs = [log_p for log_p in self.log_p if math.isfinite(log_p)]
        return sum(logs) / len(logs) if logs else None

    def metrics(self) -> dict[str, float]:
        groups = len(self.p)
        metrics = {
            "train/p_estimate": sum(self.p) / groups,
            "train/escaped": sum(p >= ATTENUATION for p in self.p) / groups,
            "train/groups_without_gradient": float(self.without_gradient),
            "train/rollouts_trained": self.trained / max(1, self.rollouts),
            "train/skipped": float(bool(self.not_finite)),
            "train/padding": sum(self.padding) / max(1, len(self.padding)),
            "train/loss": self.loss,
            "train/grad_norm": self.grad_norm,
        }
        for kind in sorted({kind for kind in self.kinds if kind}):
            members = [p for p, of in zip(self.p, self.kinds, strict=True) if of == kind]
            metrics[f"train/kinds/{kind}/p_estimate"] = sum(members) / len(members)
        if self.effective_reward:
            metrics["train/effective_reward"] = sum(self.effective_reward) / groups
        if self.q:
            metrics["train/q"] = sum(self.q) / groups
        if self.effective_samples:
            metrics["train/effective_samples"] = sum(self.effective_samples) / groups
        if self.mismatch:
            gap = torch.cat(self.mismatch)
            metrics["mismatch/mean_abs"] = gap.abs().mean().item()
            metrics["mismatch/max_abs"] = gap.abs().max().item()
            metrics["mismatch/kl"] = gap.mean().item()  # of the sampler from the trainer, estimated on its samples
        if self.at_bound:
            metrics["mismatch/weights_at_bound"] = torch.cat(self.at_bound).double().mean().item()
        return metrics


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
        whole = [Piece(group, tuple(range(len(group.rollouts)))) for group in groups]
        found = self._score([part for piece in whole for part in cut(piece, most)], UpdateReport())
        return [estimators.log_mean(found[id(group)][:1]).item() for group in groups]

    def _accumulate_all(self, groups: Sequence[Group], step: int) -> UpdateReport:
        """Leave the whole step's gradient with DeepSpeed; returns what all processes saw."""
        report = UpdateReport(rollouts=sum(len(group.rollouts) for group in groups))
        rollouts = sum(self.ranks.gather(report.rollouts))
        batches = micro_batches(self._pieces(groups, step, report), self.settings.micro_batch_tokens)
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

    def _pieces(self, groups: Sequence[Group], step: int, report: UpdateReport) -> list[Piece]:
        """What needs a gradient pass, in pieces that fit.

        Where there are rewards they give the coefficients. Others follow from log p(y given z): a group that fits is
        weighed in its gradient pass, one that does not is scored before, without a graph.
        """
        most = self.settings.micro_batch_tokens
        whole = [Piece(group, tuple(range(len(group.rollouts)))) for group in groups]
        if self.arm.samples_answers:
            early = whole
            weighed = [self._coefficients(group, None, None, step, report) for group in groups]
        else:
            early = [piece for piece in whole if piece.tokens > most]
            scored = self._score([part for piece in early for part in cut(piece, most)], report)
            weighed = [self._coefficients(piece.group, *scored[id(piece.group)], step, report) for piece in early]
        known = {id(piece.group) for piece in early}
        pieces = [piece for piece in whole if id(piece.group) not in known]
        for piece, coefficients in zip(early, weighed, strict=True):
            pieces += cut(piece.weighed(coefficients).trained, most)
        return pieces

    @torch.no_grad()
    def _score(self, pieces: Sequence[Piece], report: UpdateReport) -> dict[int, Tensor]:
        """log w and log r of whole groups from all their pieces, [2, M] by the group's identity, without a graph."""
        found = {id(piece.group): torch.zeros(2, len(piece.group.rollouts)).double() for piece in pieces}
        batches = micro_batches(pieces, self.settings.micro_batch_tokens)
        for number in range(self.ranks.most(len(batches))):
            pieces = batches[number] if number < len(batches) else []
            values = self._forward(pieces, report)[1:].cpu()
            for piece, weights in _by_piece(pieces, values):
                found[id(piece.group)][:, list(piece.members)] = weights.double()
        # ZeRO 3 has begun to gather weights for a way back that does not come.
        self.engine.empty_partition_cache()
        return found

    def _accumulate(self, pieces: Sequence[Piece], rollouts: int, step: int, report: UpdateReport) -> None:
        """Add one micro-batch's share of the gradient; rollouts counts those of the whole step.

        Without pieces it is a pass for the other processes' sake, which wait for this one in every pass.
        """
        # What was scored before was compared with the sampler then.
        is_first = any(piece.coefficients is None for piece in pieces) or self.arm.samples_answers
        values = self._forward(pieces, report if is_first else UpdateReport())
        pieces = [
            piece if piece.coefficients else piece.weighed(self._coefficients(piece.group, *found, step, report))
            for piece, found in _by_piece(pieces, values.detach()[1:])
        ]
        trained = [part for part in (piece.trained for piece in pieces) if part.members]
        if self._is_worth_another_pass(pieces, trained):
            pieces, values = trained, None  # the first graph goes before the second comes
            values = self._forward(pieces, UpdateReport())
        loss = 0 * values[:2].sum()  # a masked importance weight is -inf
        for piece, (of_rationale, of_answer, log_r) in _by_piece(pieces, values):
            score, path = (weights.to(values.device) for weights in piece.weights)
            if self.arm.samples_answers:
                score, path = score * log_r.exp(), path * log_r.exp()
            # A rollout of weight zero has log p(y) = -inf, and 0 * -inf would be NaN.
            terms = torch.where(score == 0, 0, score * of_rationale) + torch.where(path == 0, 0, path * of_answer)
            loss = loss - terms.sum() / rollouts
            report.trained += len(piece.trained.members)
        self.engine.backward(loss * self.ranks.size)  # DeepSpeed averages over processes
        report.loss += loss.item()
        if not self.watch.finite():
            report.not_finite += [piece.group.example for piece in pieces]

    def _forward(self, pieces: Sequence[Piece], report: UpdateReport) -> Tensor:
        """[3, rows]: log p of rationale and of answer, weighed by token where so set, and the log importance weight."""
        batch = self._collate(pieces, report)
        logprobs = self.engine(batch)
        log_ratio = _log_ratio(pieces, logprobs, batch, report)
        log_r = self._log_r(log_ratio, batch, report)
        if self._weighs("token"):
            ratios = self._bounded(log_ratio, report).exp()
            logprobs = torch.where(ratios == 0, 0, ratios * logprobs)
        return torch.stack([*sequence_logprobs(logprobs, batch), log_r])

    def _is_worth_another_pass(self, pieces: Sequence[Piece], trained: Sequence[Piece]) -> bool:
        """Whether to read what carries a gradient once more rather than go back through all that was read.

        The way back costs twice the way there: 3 for each id trained against 2 for each id read, and what a pass costs
        besides: just below two thirds it was measured to lose. All processes decide as one, since they read together.
        """
        counts = self.ranks.gather([sum(piece.tokens for piece in some) for some in (pieces, trained)])
        read, needed = (sum(column) for column in zip(*counts, strict=True))
        return 2 * needed < read

    def _weighs(self, level: str) -> bool:
        return self.settings.importance_weights != "none" and self.settings.importance_level == level

    def _log_r(self, log_ratio: Tensor, batch: RowBatch, report: UpdateReport) -> Tensor:
        """The log importance weight of each row's rollout as a whole, [rows]; 0 where rollouts are not weighed so."""
        rationale, answer = sequence_logprobs(log_ratio, batch)
        return self._bounded(rationale + answer, report) if self._weighs("sequence") else torch.zeros_like(rationale)

    def _bounded(self, log_ratio: Tensor, report: UpdateReport) -> Tensor:
        log_r = importance.bounded(log_ratio, self.settings.importance_weights, self.settings.importance_bound)
        report.at_bound.append((log_r != log_ratio).cpu())
        return log_r

    def _collate(self, pieces: Sequence[Piece], report: UpdateReport) -> RowBatch:
        if not pieces:
            return self.scorer.collate([(0,)], [[Row((0,), (0,), 0)]])
        batch = self.scorer.collate([piece.group.prompt for piece in pieces], [piece.rows for piece in pieces])
        report.padding.append(batch.padding)
        return batch

    def _coefficients(
        self, group: Group, log_w: Tensor | None, log_r: Tensor | None, step: int, report: UpdateReport
    ) -> Coefficients:
        """Weigh a whole group, by its rewards or by log w and the log importance weights, [M] each."""
        report.kinds.append(group.kind)
        if log_w is None or log_r is None:
            reward = torch.tensor([group.reward], dtype=torch.float64)
            coefficients = BY_REWARD[self.turn.method](reward)
            report.p.append(reward.mean().item())
        else:
            log_r = log_r[None].cpu()
            log_w = log_w[None].cpu() + log_r
            coefficients = importance.reweigh(self._weigh(log_w, step, group.place), log_r)
            if self.turn.method is Method.GARL_SCORE:  # behind reweigh, which tells the baseline by the path
                coefficients = coefficients.score_only
            self._report_weights(log_w, report)
        report.without_gradient += int((~coefficients.carries_gradient).sum())
        w = [] if log_w is None else log_w[0].exp().tolist()
        report.weighed.append(Weighed(group.place, w, coefficients.score[0].tolist(), coefficients.path[0].tolist()))
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

    def _weigh(self, log_w: Tensor, step: int, place: int) -> Coefficients:
        """The coefficients of one group, [1, M], as this step's estimator has them."""
        method, q = self.turn.method, self.turn.q
        baseline = self.settings.baseline and method is not Method.GARL_PLUGIN
        if q is None:
            found = estimators.garl_each(log_w, baseline=baseline, normalize=False)
        elif method is Method.PAFT:
            draws = generator(self.seed, "paft", step, place)
            found = estimators.paft(log_w, q, normalize=False, generator=draws)
        else:
            debias = method is Method.GARL_DEBIASED
            found = estimators.garl(log_w, q, baseline=baseline, debias=debias, normalize=False)
        # M^q would change the size of the step whenever q moves: there M it is, as at q = 1.
        power = 1.0 if self.arm.q is None else self.arm.q
        return found.scaled(log_w.shape[-1] ** -power) if self.settings.normalize else found

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
        self.engine.load_checkpoint(str(folder), tag="deepspeed")

    def close(self) -> None:
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


def _by_piece(pieces: Sequence[Piece], values: Tensor) -> list[tuple[Piece, Tensor]]:
    """Each piece with its part of [..., rows]; nothing of a batch that stands in for none."""
    sizes = [len(piece.members) for piece in pieces]
    return list(zip(pieces, values[..., : sum(sizes)].split(sizes, -1), strict=True)) if pieces else []


def _log_ratio(pieces: Sequence[Piece], logprobs: Tensor, batch: RowBatch, report: UpdateReport) -> Tensor:
    """log p of the trainer minus the sampler's, [T], over every scored id; 0 for those that nobody sampled (gold)."""
    log_ratio = torch.zeros_like(logprobs.detach())
    if not pieces:
        return log_ratio
    answers_sampled = pieces[0].group.reward is not None
    sampled: list[float] = []
    for rollout in (piece.group.rollouts[member] for piece in pieces for member in piece.members):
        thought = len(rollout.rationale_ids)
        sampled += rollout.logprobs[: thought - rollout.forced_end]
        sampled += rollout.logprobs[thought:] if answers_sampled else ()
    was_sampled = torch.ones_like(batch.is_answer) if answers_sampled else ~batch.is_answer
    log_ratio[was_sampled] = logprobs.detach()[was_sampled] - torch.tensor(sampled).to(logprobs)
    report.mismatch.append(-log_ratio[was_sampled].cpu())
    return log_ratio
