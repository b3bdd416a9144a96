"""One training step of Thaw and of TRL, on the same model and the same shapes."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.peak import peak, reset_peak
from benchmarks.shapes import QWEN3_06B
from components.config import Arm, load_settings
from components.policy.embedded import build_tokenizer
from components.policy.markers import Markers
from components.policy.model import device
from components.rollout.engine import Rollout, Sampling
from components.rollout.transformers_engine import TransformersEngine
from components.training.batches import Group
from components.training.trainer import Trainer

PARAMS = Path(__file__).parent.parent / "params.yaml"
ANSWER_RESERVE = 8  # of the new tokens; the gold answer of GARL and PAFT fills it, but for the forced </think>


@dataclass(frozen=True)
class Case:
    """What is measured.

    method: grpo or an arm of Thaw.
    lengths: None for a whole step that samples new_tokens a rollout. For the gradient pass alone, on given completions:
        "long-tail", log-normal, at most new_tokens and an eighth of that on average, or "full", new_tokens each.
    micro_batch: TRL's rows in one forward and backward pass.
    micro_batch_tokens: Thaw's ids in one; None takes that of params.yaml.
    model: "tiny", 0.6M parameters in float32, or "qwen3-0.6b" in bfloat16; random weights.
    """

    system: str
    method: str
    prompt_tokens: int
    group_size: int = 32
    groups: int = 16
    new_tokens: int = 24
    lengths: str | None = None
    micro_batch: int = 64
    micro_batch_tokens: int | None = None
    model: str = "tiny"
    steps: int = 3
    warm_up: int = 1
    threads: int = 1


@dataclass(frozen=True)
class Measured:
    """step_seconds: the median step, by the clock; cpu_seconds: the same of what the process computed.

    peak_bytes: the most memory above that of the process before model and trainer.
    """

    step_seconds: float
    cpu_seconds: float
    tokens: int  # of prompts and completions, each rollout's prompt counted, in one step
    peak_bytes: int


def measure(case: Case) -> Measured:
    """Run one case in this process."""
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    before = reset_peak()
    steps = (_trl if case.system == "trl" else _thaw)(case)[case.warm_up :]
    tokens = sum(case.prompt_tokens + length for length in completion_lengths(case))
    wall, cpu = (statistics.median(times) for times in zip(*steps, strict=True))
    return Measured(wall, cpu, tokens, peak() - before)


def completion_lengths(case: Case) -> list[int]:
    """New tokens of every rollout, group by group."""
    rollouts, most = case.groups * case.group_size, case.new_tokens
    if case.lengths != "long-tail":
        return [most] * rollouts
    drawn = torch.empty(rollouts).log_normal_(0.0, 1.0, generator=torch.Generator().manual_seed(0))
    low, high = 0.0, float(most)  # scales; the cut at `most` takes from the mean, so the right one is looked for
    for _ in range(50):
        scale = (low + high) / 2
        lengths = (drawn * scale).round().clamp(ANSWER_RESERVE + 1, most)
        low, high = (scale, high) if lengths.mean() < most / 8 else (low, scale)
    return lengths.int().tolist()


def policy(case: Case) -> Qwen3ForCausalLM:
    """A Qwen3 with random weights, where this process computes; the tiny one's vocabulary is bytes."""
    torch.manual_seed(0)
    shape = {
        "tiny": {
            "vocab_size": 260, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        },
        "qwen3-0.6b": QWEN3_06B,
    }[case.model]  # fmt: skip
    special = {"eos_token_id": 257, "pad_token_id": 256, "bos_token_id": None, "tie_word_embeddings": True}
    model = Qwen3ForCausalLM(Qwen3Config(**shape, **special, max_position_embeddings=8192))
    return model.to(device(), torch.float32 if case.model == "tiny" else torch.bfloat16)


def _prompts(case: Case) -> torch.Tensor:
    """Letters alone, one token each: [groups, prompt_tokens]."""
    return torch.randint(97, 123, (case.groups, case.prompt_tokens), generator=torch.Generator().manual_seed(1))


# Thaw


def _thaw(case: Case) -> list[tuple[float, float]]:
    train = load_settings(PARAMS).train
    if case.micro_batch_tokens is not None:
        train = train.model_copy(update={"micro_batch_tokens": case.micro_batch_tokens})
    model, arm = policy(case), Arm.parse(case.method)
    trainer = Trainer(model, arm, train, seed=0)
    step = _thaw_step(case, arm, model, trainer) if case.lengths is None else _thaw_gradient(case, arm, trainer)
    clock = _Clock()
    for number in range(case.warm_up + case.steps):
        clock.on_step_begin()
        step(number)
        clock.on_step_end()
    return clock.steps


def _thaw_step(case: Case, arm: Arm, model: Qwen3ForCausalLM, trainer: Trainer) -> Callable[[int], object]:
    tokenizer = build_tokenizer()
    marker = tokenizer.convert_tokens_to_ids("</think>")
    markers = Markers(end_of_thinking=(marker,), end_of_turn=(tokenizer.eos_token_id,), pad=tokenizer.pad_token_id)
    prompts = [tuple(tokenizer("".join(map(chr, row)))["input_ids"]) for row in _prompts(case).tolist()]
    gold = tuple(range(10, 10 + ANSWER_RESERVE - 1))
    engine = TransformersEngine(model, markers, batch_rollouts=case.groups * case.group_size)

    def step(number: int) -> None:
        sampling = Sampling(case.new_tokens, ANSWER_RESERVE, seed=number, answers=arm.samples_answers)
        engine.load_weights(model.state_dict().items())
        rollouts = engine.generate(prompts, case.group_size, sampling)
        trainer.update([_group(arm, members, gold) for members in rollouts], number)

    return step


def _thaw_gradient(case: Case, arm: Arm, trainer: Trainer) -> Callable[[int], object]:
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
    """Seconds of every step, by the wall and of the processor."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []

    def on_step_begin(self, *_: object, **__: object) -> None:
        self.started = _now()

    def on_step_end(self, *_: object, **__: object) -> None:
        self.steps.append(tuple(now - then for now, then in zip(_now(), self.started, strict=True)))


def _now() -> tuple[float, float]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


class _GivenCompletions(GRPOTrainer):
    """GRPOTrainer whose completions are given; `_Clock` then times its gradient pass and optimizer step alone."""

    given: list[list[int]]
    clock: _Clock

    def _generate_single_turn(self, *_: object, **__: object):
        return self.given, None

    def _generate_and_score_completions(self, inputs):
        scored = super()._generate_and_score_completions(inputs)
        self.clock.on_step_begin()
        return scored


def _trl(case: Case) -> list[tuple[float, float]]:
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
            bf16=case.model != "tiny",
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
            model=policy(case),
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
    return clock.steps


os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
