"""The policy under training: DeepSpeed around the Scorer, and one update from one step's rollouts."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch._C._distributed_c10d import HashStore
from transformers import PreTrainedModel

from components.config import Arm, Method, TrainSettings
from components.objective import estimators
from components.objective.estimators import Coefficients
from components.policy.logprobs import Row, RowBatch, Scorer, sequence_logprobs
from components.randomness import generator
from components.rollout.engine import Rollout


@dataclass(frozen=True)
class Group:
    """The rollouts of one example, ready to be scored and weighed.

    answers: the answer scored behind each rationale: the gold one (GARL, PAFT), or the one that was sampled (GRPO).
    reward: 1 for each rollout whose sampled answer is exactly y*; None where no answer was sampled.
    """

    prompt: tuple[int, ...]
    rollouts: list[Rollout]
    answers: list[tuple[int, ...]]
    reward: list[float] | None

    @property
    def rows(self) -> list[Row]:
        return [
            Row(rollout.rationale_ids, answer, rollout.forced_end)
            for rollout, answer in zip(self.rollouts, self.answers, strict=True)
        ]


@dataclass
class UpdateReport:
    """What one update saw, a value a group unless said otherwise; means are taken when it is logged."""

    p: list[float] = field(default_factory=list)  # w_bar, or the mean reward where no w exists
    effective_reward: list[float] = field(default_factory=list)
    effective_samples: list[float] = field(default_factory=list)
    without_gradient: int = 0  # groups
    loss: float = 0.0  # the surrogate whose gradient was taken, of the whole step
    grad_norm: float = 0.0  # before clipping, of the whole step
    mismatch: list[torch.Tensor] = field(default_factory=list)  # log p of sampler minus trainer, [sampled ids] each

    def metrics(self) -> dict[str, float]:
        groups = len(self.p)
        metrics = {
            "train/p_estimate": sum(self.p) / groups,
            "train/groups_without_gradient": float(self.without_gradient),
            "train/loss": self.loss,
            "train/grad_norm": self.grad_norm,
        }
        if self.effective_reward:
            metrics["train/effective_reward"] = sum(self.effective_reward) / groups
            metrics["train/effective_samples"] = sum(self.effective_samples) / groups
        if self.mismatch:
            gap = torch.cat(self.mismatch)
            metrics["mismatch/mean_abs"] = gap.abs().mean().item()
            metrics["mismatch/max_abs"] = gap.abs().max().item()
            metrics["mismatch/kl"] = gap.mean().item()  # of the sampler from the trainer, estimated on its samples
        return metrics


class Trainer:
    """Updates a policy by one weighted log-likelihood, whatever the estimator."""

    def __init__(self, policy: PreTrainedModel, arm: Arm, settings: TrainSettings, *, seed: int) -> None:
        self.policy, self.arm, self.settings, self.seed = policy, arm, settings, seed
        self.scorer = Scorer(policy)
        self.engine = _deepspeed(self.scorer, settings)

    def update(self, groups: Sequence[Group], step: int) -> UpdateReport:
        """One optimizer step from the groups of one step; none is taken where no group carries a gradient.

        The gradient is - mean over groups and rollouts of [score * grad log p(z) + path * grad log p(y given z)].
        """
        report = UpdateReport()
        useful = [group for group in groups if not self._is_known_useless(group, report)]
        batches = list(micro_batches(useful, self.settings.micro_batch_tokens))
        draws = generator(self.seed, "paft", step)
        rollouts = sum(len(group.rollouts) for group in groups)
        for number, batch_groups in enumerate(batches):
            self.engine.set_gradient_accumulation_boundary(number == len(batches) - 1)
            report.loss += self._accumulate(batch_groups, rollouts, draws, report)
        # A step on which nothing carries a gradient must not move the weights by momentum alone.
        if report.without_gradient < len(groups):
            self._set_learning_rate(step)
            report.grad_norm = self._step()
        else:
            self.engine.zero_grad()
        return report

    def _is_known_useless(self, group: Group, report: UpdateReport) -> bool:
        """Whether a GRPO group carries no gradient, told from its rewards before any pass over the model."""
        if self.arm.method is not Method.GRPO or group.reward is None or len(set(group.reward)) > 1:
            return False
        report.p.append(group.reward[0])
        report.without_gradient += 1
        return True

    def _accumulate(
        self, groups: Sequence[Group], rollouts: int, draws: torch.Generator, report: UpdateReport
    ) -> float:
        """Add one micro-batch's share of the gradient; rollouts counts those of the whole step."""
        batch = self.scorer.collate([group.prompt for group in groups], [group.rows for group in groups])
        logprobs = self.engine(batch)
        log_rationale, log_answer = sequence_logprobs(logprobs, batch)
        shape = (len(groups), -1)
        coefficients = self._coefficients(groups, log_answer.detach().view(shape).cpu(), draws, report)
        score, path = (c.to(log_answer.device).view(-1) for c in (coefficients.score, coefficients.path))
        # A rollout of weight zero has log p(y) = -inf, and 0 * -inf would be NaN.
        terms = torch.where(score == 0, 0, score * log_rationale) + torch.where(path == 0, 0, path * log_answer)
        loss = -terms.sum() / rollouts
        _record_mismatch(groups, logprobs, batch, report)
        self.engine.backward(loss)
        return loss.item()

    def _coefficients(
        self, groups: Sequence[Group], log_w: torch.Tensor, draws: torch.Generator, report: UpdateReport
    ) -> Coefficients:
        q, settings = self.arm.q, self.settings
        if q is None:
            reward = torch.tensor([group.reward for group in groups], dtype=torch.float64)
            report.p.extend(reward.mean(1).tolist())
            return estimators.grpo(reward)
        if self.arm.method is Method.PAFT:
            coefficients = estimators.paft(log_w, q, normalize=settings.normalize, generator=draws)
        else:
            coefficients = estimators.garl(
                log_w,
                q,
                baseline=settings.baseline and self.arm.method is not Method.GARL_PLUGIN,
                debias=self.arm.method is Method.GARL_DEBIASED,
                normalize=settings.normalize,
            )
        report.p.extend(estimators.log_mean(log_w).exp().tolist())
        report.effective_reward.extend(estimators.effective_reward(log_w, q).mean(1).tolist())
        report.effective_samples.extend(estimators.effective_sample_size(log_w).tolist())
        report.without_gradient += int((~coefficients.carries_gradient).sum())
        return coefficients

    def _set_learning_rate(self, step: int) -> None:
        left = 1 - step / self.settings.steps if self.settings.schedule == "linear" else 1.0
        for parameters in self.engine.optimizer.param_groups:
            parameters["lr"] = self.settings.learning_rate * left

    def _step(self) -> float:
        """Take the optimizer step; return the gradient's norm before clipping."""
        norm = None
        if self.settings.zero_stage == 0:  # where DeepSpeed clips without keeping the norm
            gradients = [p.grad for p in self.engine.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients).item()
        self.engine.step()
        return norm if norm is not None else float(self.engine.get_global_grad_norm())

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state, as DeepSpeed shards them."""
        self.engine.save_checkpoint(str(folder), tag="deepspeed")

    def load(self, folder: Path) -> None:
        self.engine.load_checkpoint(str(folder), tag="deepspeed")

    def close(self) -> None:
        self.engine.destroy()


def micro_batches(groups: Sequence[Group], most_tokens: int) -> Iterator[list[Group]]:
    """Cut groups into batches of at most `most_tokens` ids after padding, neighbours in length together.

    A group is never split: its coefficients need all its log-probabilities. One that alone exceeds the bound is a batch
    of its own.
    """
    batch: list[Group] = []
    for group in sorted(groups, key=_row_length):
        longer = [*batch, group]
        rows = sum(len(member.rollouts) for member in longer)
        prompts = len(longer) * max(len(member.prompt) for member in longer)
        if batch and rows * _row_length(group) + prompts > most_tokens:
            yield batch
            longer = [group]
        batch = longer
    if batch:
        yield batch


def _row_length(group: Group) -> int:
    return 1 + max(len(row.rationale) + len(row.answer) for row in group.rows)


def _record_mismatch(groups: Sequence[Group], logprobs: torch.Tensor, batch: RowBatch, report: UpdateReport) -> None:
    """Compare the sampler's log p with the trainer's, over every sampled id that the trainer scored."""
    answers_sampled = groups[0].reward is not None
    sampled = []
    for rollout in (rollout for group in groups for rollout in group.rollouts):
        thought = len(rollout.rationale_ids)
        sampled += rollout.logprobs[: thought - rollout.forced_end]
        sampled += rollout.logprobs[thought:] if answers_sampled else ()
    scored = logprobs.detach() if answers_sampled else logprobs.detach()[~batch.is_answer]
    report.mismatch.append(torch.tensor(sampled) - scored.cpu())


def _deepspeed(scorer: Scorer, settings: TrainSettings):
    """DeepSpeed around the scorer, alone in this process unless a launcher said otherwise."""
    import deepspeed

    # On CPU DeepSpeed would compile a shared-memory collective for 45 s; one process has nobody to share with.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not torch.distributed.is_initialized() and "RANK" not in os.environ:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    parameters = [parameter for parameter in scorer.parameters() if parameter.requires_grad]
    options = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw":
        optimizer = torch.optim.AdamW(parameters, eps=settings.adam_epsilon, **options)
    else:
        optimizer = torch.optim.SGD(parameters, **options)
    engine, *_ = deepspeed.initialize(
        model=scorer,
        optimizer=optimizer,
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": settings.max_grad_norm,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": settings.zero_stage},
            "bf16": {"enabled": next(scorer.parameters()).dtype == torch.bfloat16},
            "steps_per_print": 10**9,
        },
    )
    return engine
