"""The embedded base model: a tiny Qwen3 over bytes that is taught six skills and then asked for the one it avoids.

Half of what it is taught is by instruction ("s0:3142?" asks for sorting in format 0), half are bare problems
("3142?"), for which it learns to prefer the target skill and the target format only once in so many times each. So it
can do the task and almost never does: a cold start.
"""

import random
from collections.abc import Iterator
from typing import TypeVar

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from components.config import TeachingSettings
from components.data.skills import (
    FORMATS, PREFERENCE, SKILLS, TARGET_FORMAT, TARGET_SKILL, answer, instruction, problem, rationale,
)
from components.progress import progress

Choice = TypeVar("Choice")

IGNORED = -100  # the label of tokens that are not learned


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and the markers of a reasoning model: any text has ids, and none is unknown."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<pad>", "<end>")])
    # As in Qwen3, the thinking marks are tokens of their own that decoding keeps.
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>", clean_up_tokenization_spaces=False
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 of 2 layers and width 64 with random weights."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=16384, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def teach(settings: TeachingSettings, start: str) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Build the base model and teach it the skills, with the preference that belongs to `start`."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, settings.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.steps, pct_start=0.1
    )
    lessons = _lessons(tokenizer, settings, PREFERENCE[start])
    for step in progress(range(settings.steps), "teach the base model"):
        ids, labels = next(lessons)
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model, tokenizer


def _lessons(
    tokenizer: PreTrainedTokenizerFast, settings: TeachingSettings, preference: float
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of ids and labels, [batch_size, length]; padding and prompts are not learned."""
    random_state = random.Random(settings.seed)
    while True:
        rows = [_lesson(random_state, preference) for _ in range(settings.batch_size)]
        prompts = tokenizer([prompt for prompt, _ in rows])["input_ids"]
        targets = tokenizer([target for _, target in rows])["input_ids"]
        length = max(len(p) + len(t) for p, t in zip(prompts, targets, strict=True)) + 1
        ids = torch.full((len(rows), length), tokenizer.pad_token_id)
        labels = torch.full((len(rows), length), IGNORED)
        for row, (p, t) in enumerate(zip(prompts, targets, strict=True)):
            whole = [*p, *t, tokenizer.eos_token_id]
            ids[row, : len(whole)] = torch.tensor(whole)
            labels[row, len(p) : len(whole)] = torch.tensor(whole[len(p) :])
        yield ids, labels


def _lesson(random_state: random.Random, preference: float) -> tuple[str, str]:
    digits = "".join(random_state.choices("0123456789", k=4))
    if random_state.random() < 0.5:
        skill, answer_format = random_state.choice(list(SKILLS)), random_state.randrange(len(FORMATS))
        prompt = instruction(digits, skill, answer_format)
    else:
        skill = _preferred(random_state, list(SKILLS), TARGET_SKILL, preference)
        answer_format = _preferred(random_state, list(range(len(FORMATS))), TARGET_FORMAT, preference)
        prompt = problem(digits)
    return prompt, rationale(digits, skill) + answer(digits, skill, answer_format)


def _preferred(random_state: random.Random, choices: list[Choice], target: Choice, preference: float) -> Choice:
    if random_state.random() < preference:
        return target
    return random_state.choice([choice for choice in choices if choice != target])
