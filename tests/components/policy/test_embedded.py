"""The embedded base model: its bytes and markers, its size, and the lessons it is taught by."""

import re
from collections import Counter
from itertools import islice
from random import Random

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from components.config import TeachingSettings
from components.data.skills import FORMATS, KINDS, PREFERENCES, SKILLS, Preference
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
    skills: Counter[tuple[str | None, str]] = Counter()
    formats: Counter[tuple[str | None, int]] = Counter()
    kinds: Counter[str | None] = Counter()
    for _ in range(12000):
        kind, prompt, completion = _exercise(random, dict.fromkeys(KINDS, preference))
        parts = COMPLETION.fullmatch(completion)
        assert parts is not None
        digits = prompt[-5:-1]
        answer_format = next(
            number for number, form in enumerate(FORMATS) if form.format(parts["thought"]) == parts["answer"]
        )
        assert parts["thought"] == SKILLS[parts["skill"]](digits)
        asked = KINDS[kind].letter if kind else f"{parts['skill']}{answer_format}:"
        assert prompt == f"{asked}{digits}?"
        kinds[kind] += 1
        skills[kind, parts["skill"]] += 1
        formats[kind, answer_format] += 1
    shares = {kind: count / 12000 for kind, count in kinds.items()}
    assert shares == pytest.approx({None: 0.5} | dict.fromkeys(KINDS, 0.125), abs=0.02)
    for name, kind in KINDS.items():
        for counts, target, wanted in (
            (skills, kind.skill, preference.skill),
            (formats, kind.answer_format, preference.format),
        ):
            assert counts.pop((name, target), 0) / kinds[name] == pytest.approx(wanted, abs=0.05 if wanted else 0)
            others = [count for (of, _), count in counts.items() if of == name]
            assert [count / kinds[name] for count in others] == pytest.approx([(1 - wanted) / 5] * 5, abs=0.05)
    for counts in (skills, formats):
        told = [count for (of, _), count in counts.items() if of is None]
        assert [count / kinds[None] for count in told] == pytest.approx([1 / 6] * 6, abs=0.03)


def test_labels_are_the_completion_and_targets_are_where_a_bare_problem_is_decided(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    think, close, end = (tokenizer.convert_tokens_to_ids(marker) for marker in ("<think>", "</think>", "<end>"))
    preferences = PREFERENCES["mixed"]
    by_letter = {kind.letter: name for name, kind in KINDS.items()}
    kinds = set()
    for ids, labels, target, log_preference in islice(_lessons(tokenizer, settings(batch_size=64), preferences), 5):
        wanted: list[float] = []
        for row in range(64):
            text = tokenizer.decode(ids[row])
            prompt, completion = re.fullmatch(r"(.*\?)(<think>.*<end>)(?:<pad>)*", text).groups()
            first, last = len(prompt), len(prompt) + len(tokenizer(completion)["input_ids"])
            assert labels[row, first:last].tolist() == ids[row, first:last].tolist()
            assert ids[row, last - 1] == end
            assert (labels[row, :first] == IGNORED).all()
            assert (labels[row, last:] == IGNORED).all()

            places = (target[row] != IGNORED).nonzero()[:, 0].tolist()
            kinds.add(kind := by_letter.get(prompt[0]))
            assert [ids[row, place - 1] for place in places] == ([think, close] if kind else [])
            decisions = KINDS[kind].skill + FORMATS[KINDS[kind].answer_format][0] if kind else ""
            assert tokenizer.decode(target[row, places]) == decisions
            wanted += preferences[kind] if kind else ()
        # In the order in which _chosen finds the targets: skill and format, row by row.
        assert log_preference.exp().tolist() == pytest.approx(wanted)
    assert kinds == {None, *KINDS}


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
