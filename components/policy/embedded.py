"""The embedded base model: a tiny Qwen3 over bytes that is taught six skills and then asked for those it avoids.

Half of what it is taught is by instruction ("s0:3142?" asks for sorting in format 0), half are bare problems
("w3142?"), for which it learns to decide for the skill and the format of their kind only once in so many times. So it
can do the task and almost never does: a cold start.
"""

import math
import random
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeVar

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from components.config import Start, TeachingSettings
from components.data.skills import (
    FORMATS,
    KINDS,
    SKILLS,
    Preference,
    answer,
    instruction,
    preferences,
    problem,
    rationale,
)
from components.policy.bytes import CONTEXT, END, PAD, byte_tokenizer
from components.progress import progress

Choice = TypeVar("Choice")

IGNORED = -100  # the label of tokens that are not learned
PREFERENCE_WEIGHT = 0.02  # of the squared error in log p of what a bare problem avoids


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte; see components.policy.bytes."""
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(), eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 of 2 layers and width 64 with random weights."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def teach(settings: TeachingSettings, start: Start) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Build the base model and teach it the skills, with the preferences that belong to `start`."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, settings.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.steps, pct_start=0.1
    )
    lessons = _lessons(tokenizer, settings, preferences(start))
    for _ in progress(range(settings.steps), "teach the base model"):
        lesson = next(lessons)
        logprobs = model(input_ids=lesson.ids[:, :-1], use_cache=False).logits.log_softmax(-1)
        error = _chosen(logprobs, lesson.target[:, 1:]) - lesson.log_preference
        loss = -_chosen(logprobs, lesson.labels[:, 1:]).mean() + PREFERENCE_WEIGHT * error.square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model, tokenizer


def _chosen(logprobs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """log p of the tokens that are not IGNORED, [their number], from [rows, length, vocabulary] and [rows, length]."""
    counts = tokens != IGNORED
    return logprobs[counts].gather(1, tokens[counts][:, None])[:, 0]


class Lesson(NamedTuple):
    """A batch to learn from; [batch_size, length] each, IGNORED where nothing is learned.

    labels: the ids to be imitated.
    target: the skill and the format of a bare problem's kind, where the model decides about them.
    log_preference: [number of targets] how likely each of them is to become. It is taught as a number: from how rarely
        the targets occur among the labels it would be learned far too roughly.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    target: torch.Tensor
    log_preference: torch.Tensor


def _lessons(
    tokenizer: PreTrainedTokenizerFast, settings: TeachingSettings, preferences: Mapping[str, Preference]
) -> Iterator[Lesson]:
    random_state = random.Random(settings.seed)
    skill_ids = {kind: tokenizer.convert_tokens_to_ids(skill) for kind, (_, skill, _) in KINDS.items()}
    format_ids = {kind: tokenizer.convert_tokens_to_ids(FORMATS[form][0]) for kind, (_, _, form) in KINDS.items()}
    end_of_thinking = tokenizer.convert_tokens_to_ids("</think>")
    while True:
        kinds, prompts, completions = zip(
            *(_exercise(random_state, preferences) for _ in range(settings.batch_size)), strict=True
        )
        rows = [
            (prompt, [*completion, tokenizer.eos_token_id])
            for prompt, completion in zip(
                tokenizer(prompts)["input_ids"], tokenizer(completions)["input_ids"], strict=True
            )
        ]
        ids = torch.full((len(rows), max(len(p) + len(c) for p, c in rows)), tokenizer.pad_token_id)
        labels, target = torch.full_like(ids, IGNORED), torch.full_like(ids, IGNORED)
        log_preference: list[float] = []
        for row, (kind, (prompt, completion)) in enumerate(zip(kinds, rows, strict=True)):
            start, end = len(prompt), len(prompt) + len(completion)
            ids[row, :end] = torch.tensor([*prompt, *completion])
            labels[row, start:end] = torch.tensor(completion)
            if kind:
                target[row, start + 1] = skill_ids[kind]  # behind <think>
                target[row, start + completion.index(end_of_thinking) + 1] = format_ids[kind]
                log_preference += map(math.log, preferences[kind])
        yield Lesson(ids, labels, target, torch.tensor(log_preference))


def _exercise(random_state: random.Random, preferences: Mapping[str, Preference]) -> tuple[str | None, str, str]:
    """The kind of a bare problem, None for an instruction; the prompt, and the completion."""
    digits = "".join(random_state.choices("0123456789", k=4))
    skills, formats = list(SKILLS), list(range(len(FORMATS)))
    if random_state.random() < 0.5:
        skill, answer_format = random_state.choice(skills), random_state.choice(formats)
        return None, instruction(digits, skill, answer_format), _completion(digits, skill, answer_format)
    kind = random_state.choice(list(KINDS))
    skill = _preferred(random_state, skills, KINDS[kind].skill, preferences[kind].skill)
    answer_format = _preferred(random_state, formats, KINDS[kind].answer_format, preferences[kind].format)
    return kind, problem(digits, kind), _completion(digits, skill, answer_format)


def _completion(digits: str, skill: str, answer_format: int) -> str:
    return rationale(digits, skill) + answer(digits, skill, answer_format)


def _preferred(random_state: random.Random, choices: list[Choice], target: Choice, preference: float) -> Choice:
    if random_state.random() < preference:
        return target
    return random_state.choice([choice for choice in choices if choice != target])
