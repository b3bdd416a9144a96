"""How many tokens texts have for a model, from its tokenizer's files alone.

The counts are those of components.policy.model.Codec; Transformers, which that needs, takes ten seconds and half a
gigabyte to load, and whoever only prepares data should not have to wait for it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from components.config import ModelSettings
from components.errors import UserError
from components.policy.bytes import CONTEXT, byte_tokenizer

FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json")


class TokenCounter:
    """Counts what a prompt and a gold answer take of the model's context.

    context: the most tokens of prompt and completion together; None where the model knows no limit.
    """

    def __init__(self, settings: ModelSettings, *, chat: bool) -> None:
        """chat: put prompts into the chat template, thinking on (the warm start), if the model has one.

        Raises:
            UserError: model.name leads to no tokenizer.json.
        """
        self.answer_prefix = settings.answer_prefix
        self._template, self._names = None, {}
        if settings.name == "embedded":
            self._tokenizer, self.context = byte_tokenizer(), CONTEXT
            return
        folder = _files(settings)
        self._tokenizer = _tokenizer(folder, settings.name)
        self.context = _read(folder / "config.json").get("max_position_embeddings")
        names = _read(folder / "tokenizer_config.json")
        if chat and (template := _chat_template(folder, names)):
            self._template, self._names = _compiled(template), _special_tokens(names)

    def prompts(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each prompt, its chat template included."""
        return self._count([self._rendered(text) for text in texts], special=self._template is None)

    def at_most(self, prompt: str) -> int:
        """A number of tokens that a prompt does not exceed, without counting them: each is a byte or more."""
        return len(self._rendered(prompt).encode()) + 16  # of those that a tokenizer adds at both ends

    def answers(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each gold answer as it is scored, what stands before it and the end of the turn included."""
        return [count + 1 for count in self._count([self.answer_prefix + text for text in texts], special=False)]

    def _count(self, texts: list[str], *, special: bool) -> list[int]:
        return [len(encoding) for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=special)]

    def _rendered(self, text: str) -> str:
        if self._template is None:
            return text
        message = [{"role": "user", "content": text}]
        return self._template.render(messages=message, add_generation_prompt=True, enable_thinking=True, **self._names)


def _files(settings: ModelSettings) -> Path:
    """The folder with the tokenizer: the model's own, or a repository's files in the hub's cache."""
    if Path(settings.name).is_dir():
        return Path(settings.name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(settings.name, revision=settings.revision, allow_patterns=list(FILES)))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"no tokenizer can be fetched from '{settings.name}' to count tokens with: {reason}") from error


def _tokenizer(folder: Path, name: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises this one class for whatever is wrong
        raise UserError(
            f"'{name}' has no tokenizer.json to count tokens with ({error}); load its tokenizer with Transformers once"
            " and save_pretrained it beside the model."
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _chat_template(folder: Path, names: dict[str, Any]) -> str | None:
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8")
    template = names.get("chat_template")
    if isinstance(template, list):  # several, by name
        return next((item["template"] for item in template if item["name"] == "default"), None)
    return template


def _special_tokens(names: dict[str, Any]) -> dict[str, str]:
    """What templates may ask for by name: eos_token and so on."""
    values = {name: value for name, value in names.items() if name.endswith("_token")}
    texts = {name: value["content"] if isinstance(value, dict) else value for name, value in values.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _compiled(template: str) -> Any:
    """As Transformers compiles chat templates."""
    from datetime import datetime

    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    return environment.from_string(template)
