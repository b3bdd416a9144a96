"""The embedded base model: its bytes and markers, its size, and the lessons it is taught by."""

import re
from collections import Counter
from itertools import islice
from random import Random

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from components.config import TeachingSettings
from components.data.skills import FORMATS, PREFERENCES, SKILLS, TARGET_FORMAT, TARGET_SKILL, Preference
from components.policy.embedded import IGNORED, _chosen, _exercise, _lessons, build_model, build_tokenizer, teach

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = [
    "",
    " ",
    "3142?",
    "  two  blanks\n\n\ttab\r\n",
    "näïve — “quotes” … 漢字 ру́сский",
    "👩‍👩‍👧‍👦 🏴‍☠️ 🇫🇷 e\u0301 \u200f\ufeff\u0000",
    "think> </think <pad",
    "".join(chr(code) for code in range(0x250)),
]
COMPLETION = re.compile(r"<think>(?P<skill>.)(?P<thought>\d{4})</think>(?P<answer>.+)")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def settings(**others: int) -> TeachingSettings:
    return TeachingSettings(**({"steps": 30, "batch_size": 16, "learning_rate": 0.003, "seed": 0} | others))


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back_from_its_bytes(text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


def test_any_bytes_have_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    random = Random(0)
    for _ in range(200):
        text = "".join(
            chr(random.choice([random.randrange(0xD800), random.randrange(0xE000, 0x110000)])) for _ in range(9)
        )
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_markers_are_single_ids_that_no_byte_has(tokenizer: PreTrainedTokenizerFast) -> None:
    markers = ("<pad>", "<end>", "<think>", "</think>")
    ids = [tokenizer(marker)["input_ids"] for marker in markers]
    assert [len(marker) for marker in ids] == [1, 1, 1, 1]
    assert sorted(marker[0] for marker in ids) == [256, 257, 258, 259]
    assert len(tokenizer) == 260
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (ids[0][0], ids[1][0])
    whole = tokenizer("1?<think>s1</think>a:1<end>")["input_ids"]
    assert tokenizer.decode(whole, skip_special_tokens=True) == "1?<think>s1</think>a:1"


def test_the_model_is_tiny_and_its_seed_alone_makes_it(tokenizer: PreTrainedTokenizerFast) -> None:
    one, same, other = (build_model(tokenizer, seed) for seed in (0, 0, 1))
    assert one.num_parameters() == 99_008
    assert equal(one, same)
    assert not equal(one, other)


# Lessons


@pytest.mark.parametrize("preference", [Preference(0.3, 0.1), Preference(0, 0)], ids=["some", "none"])
def test_bare_exercises_show_what_is_to_be_learned_as_rarely_as_preferred(preference: Preference) -> None:
    random = Random(0)
    skills: Counter[tuple[bool, str]] = Counter()
    formats: Counter[tuple[bool, int]] = Counter()
    for _ in range(6000):
        bare, prompt, completion = _exercise(random, preference)
        parts = COMPLETION.fullmatch(completion)
        assert parts is not None
        digits = prompt[-5:-1]
        answer_format = next(
            number for number, form in enumerate(FORMATS) if form.format(parts["thought"]) == parts["answer"]
        )
        assert parts["thought"] == SKILLS[parts["skill"]](digits)
        assert prompt == (f"{digits}?" if bare else f"{parts['skill']}{answer_format}:{digits}?")
        skills[bare, parts["skill"]] += 1
        formats[bare, answer_format] += 1
    bares = sum(count for (bare, _), count in skills.items() if bare)
    assert 0.48 < bares / 6000 < 0.52
    for counts, target, wanted in (
        (skills, TARGET_SKILL, preference.skill),
        (formats, TARGET_FORMAT, preference.format),
    ):
        assert counts.pop((True, target), 0) / bares == pytest.approx(wanted, abs=0.03 if wanted else 0)
        others = [count for (bare, _), count in counts.items() if bare]
        assert [count / bares for count in others] == pytest.approx([(1 - wanted) / 5] * 5, abs=0.03)
        told = [count for (bare, _), count in counts.items() if not bare]
        assert [count / (6000 - bares) for count in told] == pytest.approx([1 / 6] * 6, abs=0.03)


def test_labels_are_the_completion_and_targets_are_where_a_bare_problem_is_decided(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    think, close, end = (tokenizer.convert_tokens_to_ids(marker) for marker in ("<think>", "</think>", "<end>"))
    preference = Preference(skill=0.3, format=0.1)
    kinds = set()
    for ids, labels, target, log_preference in islice(_lessons(tokenizer, settings(batch_size=64), preference), 5):
        bares = 0
        for row in range(64):
            text = tokenizer.decode(ids[row])
            prompt, completion = re.fullmatch(r"(.*\?)(<think>.*<end>)(?:<pad>)*", text).groups()
            first, last = len(prompt), len(prompt) + len(tokenizer(completion)["input_ids"])
            assert labels[row, first:last].tolist() == ids[row, first:last].tolist()
            assert ids[row, last - 1] == end
            assert (labels[row, :first] == IGNORED).all()
            assert (labels[row, last:] == IGNORED).all()

            places = (target[row] != IGNORED).nonzero()[:, 0].tolist()
            bare = prompt[0].isdigit()
            kinds.add(bare)
            bares += bare
            assert [ids[row, place - 1] for place in places] == ([think, close] if bare else [])
            assert tokenizer.decode(target[row, places]) == (TARGET_SKILL + FORMATS[TARGET_FORMAT][0] if bare else "")
        # In the order in which _chosen finds the targets: skill and format, row by row.
        assert log_preference.exp().tolist() == pytest.approx([*preference] * bares)
    assert kinds == {True, False}


def test_chosen_picks_the_log_probabilities_that_count() -> None:
    logprobs = torch.arange(12.0).view(1, 4, 3)
    assert _chosen(logprobs, torch.tensor([[2, IGNORED, 0, IGNORED]])).tolist() == [2, 6]


# Teaching


@torch.no_grad()
def loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> tuple[float, float]:
    """On lessons of another seed: mean -log p of what is taught, and how far log p of the targets is from `cold`."""
    lesson = next(_lessons(tokenizer, settings(batch_size=128, seed=1), PREFERENCES["cold"]))
    logprobs = model(input_ids=lesson.ids[:, :-1]).logits.log_softmax(-1)
    error = _chosen(logprobs, lesson.target[:, 1:]) - lesson.log_preference
    return -_chosen(logprobs, lesson.labels[:, 1:]).mean().item(), error.abs().mean().item()


def test_teaching_lowers_the_loss_and_its_seed_alone_decides_the_outcome(tokenizer: PreTrainedTokenizerFast) -> None:
    untaught = loss(build_model(tokenizer, 0), tokenizer)
    torch.manual_seed(5)
    taught, _ = teach(settings(), "cold")
    torch.manual_seed(6)
    again, _ = teach(settings(), "cold")
    found = loss(taught, tokenizer)
    assert found[0] < untaught[0] - 1
    assert found[1] < untaught[1] - 1
    assert equal(taught, again)
    assert not equal(taught, teach(settings(seed=1), "cold")[0])
    assert not equal(taught, teach(settings(), "warm")[0])


def equal(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    weights = other.state_dict()
    return all(torch.equal(weight, weights[name]) for name, weight in one.state_dict().items())
