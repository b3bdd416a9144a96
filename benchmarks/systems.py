"""One training step of Thaw and of TRL, on the same model and the same shapes; each runs in a process of its own."""

import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from components.config import Arm, load_settings
from components.policy.embedded import build_tokenizer
from components.rollout.engine import Markers, Rollout, Sampling
from components.rollout.transformers_engine import TransformersEngine
from components.training.trainer import Group, Trainer

PARAMS = Path(__file__).parent.parent / "params.yaml"
ANSWER_RESERVE = 8  # of the new tokens; the gold answer of GARL and PAFT fills it, but for the forced </think>


@dataclass(frozen=True)
class Case:
    """What is measured.

    method: grpo or an arm of Thaw.
    lengths: None for a whole step that samples new_tokens a rollout; "long-tail" for the gradient pass alone, on
        given completions whose lengths have mean 64 and maximum 512.
    micro_batch: TRL's rows in one forward and backward pass.
    """

    system: str
    method: str
    prompt_tokens: int
    group_size: int = 32
    groups: int = 16
    new_tokens: int = 24
    lengths: str | None = None
    micro_batch: int = 64
    steps: int = 3
    warm_up: int = 1
    threads: int = 1


@dataclass(frozen=True)
class Measured:
    """step_seconds: the median step. peak_bytes: the most memory above that of the process before model and trainer."""

    step_seconds: float
    tokens: int  # of prompts and completions, each rollout's prompt counted, in one step
    peak_bytes: int


def measure(case: Case) -> Measured:
    """Run one case in this process."""
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    before = _reset_peak()
    seconds = (_trl if case.system == "trl" else _thaw)(case)
    tokens = sum(case.prompt_tokens + length for length in completion_lengths(case))
    return Measured(statistics.median(seconds[case.warm_up :]), tokens, _peak() - before)


def completion_lengths(case: Case) -> list[int]:
    """New tokens of every rollout, group by group: all alike, or log-normal with mean 64, cut at 512."""
    rollouts = case.groups * case.group_size
    if case.lengths is None:
        return [case.new_tokens] * rollouts
    drawn = torch.empty(rollouts).log_normal_(3.66, 1.0, generator=torch.Generator().manual_seed(0))
    return (drawn * (64 / drawn.clamp(9, 512).mean())).round().clamp(9, 512).int().tolist()


def _policy(context: int = 1024) -> Qwen3ForCausalLM:
    """A Qwen3 of 0.6M parameters and 4 layers with random weights, over bytes."""
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=260, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, head_dim=32, tie_word_embeddings=True, max_position_embeddings=context,
            eos_token_id=257, pad_token_id=256, bos_token_id=None,
        )
    )  # fmt: skip


def _prompts(case: Case) -> torch.Tensor:
    """Letters alone, one token each: [groups, prompt_tokens]."""
    return torch.randint(97, 123, (case.groups, case.prompt_tokens), generator=torch.Generator().manual_seed(1))


# Thaw


def _thaw(case: Case) -> list[float]:
    train = load_settings(PARAMS).train
    policy, arm = _policy(), Arm.parse(case.method)
    trainer = Trainer(policy, arm, train, seed=0)
    step = (_thaw_step if case.lengths is None else _thaw_gradient)(case, arm, policy, trainer)
    seconds = []
    for number in range(case.warm_up + case.steps):
        started = time.perf_counter()
        step(number)
        seconds.append(time.perf_counter() - started)
    return seconds


def _thaw_step(case: Case, arm: Arm, policy: Qwen3ForCausalLM, trainer: Trainer) -> Callable[[int], object]:
    tokenizer = build_tokenizer()
    marker = tokenizer.convert_tokens_to_ids("</think>")
    markers = Markers(end_of_thinking=(marker,), end_of_turn=(tokenizer.eos_token_id,), pad=tokenizer.pad_token_id)
    prompts = [tuple(tokenizer("".join(map(chr, row)))["input_ids"]) for row in _prompts(case).tolist()]
    gold = tuple(range(10, 10 + ANSWER_RESERVE - 1))
    engine = TransformersEngine(policy, markers, batch_rollouts=case.groups * case.group_size)

    def step(number: int) -> None:
        sampling = Sampling(case.new_tokens, ANSWER_RESERVE, seed=number, answers=arm.samples_answers)
        engine.load_weights(policy.state_dict().items())
        rollouts = engine.generate(prompts, case.group_size, sampling)
        trainer.update([_group(arm, members, gold) for members in rollouts], number)

    return step


def _thaw_gradient(case: Case, arm: Arm, policy: Qwen3ForCausalLM, trainer: Trainer) -> Callable[[int], object]:
    del policy
    lengths, groups = iter(completion_lengths(case)), []
    random = torch.Generator().manual_seed(2)
    gold = tuple(range(10, 10 + ANSWER_RESERVE))
    for prompt in _prompts(case).tolist():
        members = []
        for _ in range(case.group_size):
            ids = torch.randint(0, 256, (next(lengths),), generator=random).tolist()
            thought = len(ids) - ANSWER_RESERVE
            logprobs = (-5.5,) * len(ids)
            members.append(Rollout(tuple(prompt), tuple(ids[:thought]), tuple(ids[thought:]), logprobs, "stop", 0))
        groups.append(_group(arm, members, gold))
    return lambda number: trainer.update(groups, number)


def _group(arm: Arm, members: list[Rollout], gold: tuple[int, ...]) -> Group:
    prompt = members[0].prompt_ids
    if arm.samples_answers:
        return Group(prompt, members, [m.answer_ids for m in members], [reward(m.rationale_ids) for m in members])
    return Group(prompt, members, [gold] * len(members), None)


def reward(completion: tuple[int, ...] | list[int]) -> float:
    """As good as a coin, so that every group carries a gradient."""
    return float(completion[0] % 2)


# TRL


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: object, **__: object) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *_: object, **__: object) -> None:
        self.seconds.append(time.perf_counter() - self.started)


class _GivenCompletions(GRPOTrainer):
    """GRPOTrainer whose completions are given; `_Clock` then times its gradient pass and optimizer step alone."""

    given: list[list[int]]
    clock: _Clock

    def _generate_single_turn(self, *_: object, **__: object):
        return self.given, None

    def _generate_and_score_completions(self, inputs):
        scored = super()._generate_and_score_completions(inputs)
        self.clock.started = time.perf_counter()
        return scored


def _trl(case: Case) -> list[float]:
    """GRPOTrainer at its best: no reference model, no checkpointing, the micro-batch that was quickest."""
    from datasets import Dataset

    rollouts = case.groups * case.group_size
    passes = rollouts // case.micro_batch
    prompts = ["".join(map(chr, row)) for row in _prompts(case).tolist()]
    clock, most = _Clock(), max(completion_lengths(case))
    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=case.micro_batch,
            gradient_accumulation_steps=passes,
            steps_per_generation=passes,
            num_generations=case.group_size,
            max_completion_length=most,
            max_steps=case.warm_up + case.steps,
            loss_type="grpo",
            scale_rewards="group",
            beta=0.0,
            num_iterations=1,
            learning_rate=1e-3,
            max_grad_norm=1.0,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            shuffle_dataset=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            generation_kwargs={"max_length": None},
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        kind = GRPOTrainer if case.lengths is None else _GivenCompletions
        trainer = kind(
            model=_policy(),
            reward_funcs=lambda completion_ids, **_: [reward(ids) for ids in completion_ids],
            args=settings,
            train_dataset=Dataset.from_dict({"prompt": prompts * (case.warm_up + case.steps)}),
            processing_class=build_tokenizer(),
            callbacks=[clock],
        )
        if isinstance(trainer, _GivenCompletions):
            random = torch.Generator().manual_seed(2)
            trainer.clock = clock
            trainer.given = [
                torch.randint(0, 256, (length,), generator=random).tolist() for length in completion_lengths(case)
            ]
        trainer.train()
    return clock.seconds


# Memory


def _reset_peak() -> int:
    """Forget the peak so far; the bytes in use now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # see proc(5)
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    line = next(
        line for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) * 1024


os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
