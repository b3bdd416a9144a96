"""Counting tokens without Transformers gives what Transformers gives."""

import json
from collections import Counter
from pathlib import Path

import pytest

from components.config import ModelSettings
from components.data import finqa, hotpotqa, musique
from components.errors import UserError
from components.policy.embedded import build_tokenizer
from components.policy.model import Codec, load_tokenizer
from components.policy.tokens import TokenCounter
from tests.conftest import small_settings

TEXTS = ["3142?", "Zürich 𝕏 <think>x</think> <|im_end|> <end>", " \n\n ", "a" * 3000, "12,345.6% of\ttabs\r\n"]
TEMPLATE = (
    "{% for message in messages %}{{ bos_token }}[{{ message.role }}] {{ message['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<think>' if enable_thinking else '</think>' }}{% endif %}"
)


def model(**changes: str) -> ModelSettings:
    return small_settings().model.model_copy(update=changes)


def same(settings: ModelSettings, codec: Codec, chat: bool, texts: list[str]) -> None:
    counter = TokenCounter(settings, chat=chat)
    assert counter.prompts(texts) == [len(codec.prompt(text)) for text in texts]
    assert counter.answers(texts) == [len(codec.gold_answer(text)) for text in texts]
    assert all(counter.at_most(text) >= count for text, count in zip(texts, counter.prompts(texts), strict=True))


def test_the_embedded_models_counts() -> None:
    settings = model(answer_prefix="= ")
    for chat in (False, True):
        same(settings, Codec(build_tokenizer(), settings, chat=chat), chat, TEXTS)
    assert TokenCounter(settings, chat=False).context == 16_384


@pytest.mark.parametrize("place", ["file", "config", "named"])
def test_a_folders_chat_template_is_counted_wherever_it_stands(tmp_path: Path, place: str) -> None:
    build_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"bos_token": "<end>"}
    if place == "file":
        (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    else:
        named = [{"name": "tools", "template": "no"}, {"name": "default", "template": TEMPLATE}]
        config["chat_template"] = TEMPLATE if place == "config" else named
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    settings = model(name=str(tmp_path))
    codec = Codec(load_tokenizer(tmp_path), settings, chat=True)
    assert codec.text(codec.prompt(" x ")) == "<end>[user] x\n<think>"
    same(settings, codec, True, TEXTS)
    same(settings, Codec(load_tokenizer(tmp_path), settings, chat=False), False, TEXTS)
    assert TokenCounter(settings, chat=True).context is None


def test_a_folder_without_a_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no tokenizer.json to count tokens with .* save_pretrained"):
        TokenCounter(model(name=str(tmp_path)), chat=False)


def test_a_repository_out_of_reach_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("nobody/nothing", "no/such/folder"):
        with pytest.raises(UserError, match=f"no tokenizer can be fetched from '{name}'"):
            TokenCounter(model(name=name), chat=False)


@pytest.mark.parametrize("chat", [False, True])
def test_qwen3s_counts_of_real_questions(real_samples: Path, qwen3: Path, chat: bool) -> None:
    settings = model(name=str(qwen3), answer_prefix="\n\n")
    codec = Codec(load_tokenizer(settings.name), settings, chat=chat)
    texts = list(TEXTS)
    for task, name in ((finqa, "finqa/dev.json"), (hotpotqa, "hotpotqa/train.json"), (musique, "musique/dev.jsonl")):
        examples = list(task.read(real_samples / name, Counter()))[:20]
        texts += [text for example in examples for text in (example.prompt, *example.answers)]
    same(settings, codec, chat, texts)
