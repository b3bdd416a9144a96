"""Loading a policy, and the tokens that structure what it writes."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from components.config import ModelSettings
from components.errors import UserError
from components.policy.embedded import build_model, build_tokenizer
from components.policy.markers import Markers

# Transformers imports DeepSpeed when it saves, and DeepSpeed warns where it has to find out that there is no GPU.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
# A bar for every file that is read or written would drown the progress of the step itself.
logging.disable_progress_bar()

# What Transformers raises of files that are missing or hold what they should not.
UNUSABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError)


def device() -> torch.device:
    """Where this process computes."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def load_model(source: str | Path, *, revision: str | None = None, dtype: str = "float32") -> PreTrainedModel:
    """Load a causal language model from a folder or a Hugging Face repository; safetensors only, no remote code.

    Raises:
        UserError: nothing usable lies there.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (*UNUSABLE, RuntimeError, SafetensorError) as error:
        raise UserError(f"no model can be loaded from '{source}': {_reason(source, error)}") from error
    model, found = loaded
    # Transformers would fill them with random numbers and only warn.
    if found["missing_keys"]:
        raise UserError(f"no model can be loaded from '{source}': its weights lack {sorted(found['missing_keys'])[0]}.")
    return model


def load_config(folder: Path) -> PretrainedConfig:
    """The shapes of the model in a folder.

    Raises:
        UserError: nothing usable lies there.
    """
    with _refused_in_words("model", folder):
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_shapes(settings: ModelSettings) -> PreTrainedModel:
    """The policy on the meta device, where it has shapes and no numbers; reads its config.json from this machine alone.

    Raises:
        UserError: there is no such config here.
    """
    with torch.device("meta"):
        if settings.name == "embedded":
            return build_model(build_tokenizer(), 0).to(getattr(torch, settings.dtype))
        try:
            config = AutoConfig.from_pretrained(
                settings.name, revision=settings.revision, local_files_only=True, trust_remote_code=False
            )
            return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, settings.dtype))
        except UNUSABLE as error:
            raise UserError(
                f"no model config can be read from '{settings.name}' on this machine ({_reason(settings.name, error)});"
                " name a folder with its config.json: --set model.name=FOLDER."
            ) from error


def weights_at_once(config: PretrainedConfig) -> int:
    """How many weights ZeRO has in flight: those of a square matrix, as Transformers' `auto` would set it."""
    return config.get_text_config().hidden_size ** 2


def head_width(config: PretrainedConfig) -> int:
    """How many numbers a query, a key or a value of one head has."""
    config = config.get_text_config()
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def load_tokenizer(source: str | Path, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer that belongs to a policy.

    Raises:
        UserError: nothing usable lies there.
    """
    with _refused_in_words("tokenizer", source):
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)


class Codec:
    """Text to ids and back for one policy: prompts, gold answers and the markers between them.

    Nothing that was sampled is ever encoded again; `answer_text` is for answer matching and for people.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: ModelSettings, *, chat: bool) -> None:
        """chat: put prompts into the tokenizer's chat template, thinking on (the warm start), if it has one."""
        self.tokenizer = tokenizer
        self.answer_prefix = settings.answer_prefix
        self.chat = chat and tokenizer.chat_template is not None
        self.markers = _markers(tokenizer, settings.end_of_thinking)

    def prompt(self, text: str) -> tuple[int, ...]:
        """A question's ids, in the chat template where the start is warm; with the special tokens of a beginning."""
        if self.chat:
            message = [{"role": "user", "content": text}]
            text = str(
                self.tokenizer.apply_chat_template(
                    message, tokenize=False, add_generation_prompt=True, enable_thinking=True
                )
            )
        return tuple(self.tokenizer(text, add_special_tokens=not self.chat)["input_ids"])

    def gold_answer(self, text: str) -> tuple[int, ...]:
        """The ids scored as y*: what stands before an answer, the answer, and the end of the turn."""
        ids = self.tokenizer(self.answer_prefix + text, add_special_tokens=False)["input_ids"]
        return (*ids, self.markers.end_of_turn[0])

    def answer_text(self, ids: Sequence[int]) -> str:
        """An answer as it is compared with gold ones, without special tokens and surrounding blanks."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def text(self, ids: Sequence[int]) -> str:
        """Everything, special tokens included, for people to read."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))


def _markers(tokenizer: PreTrainedTokenizerBase, end_of_thinking: str) -> Markers:
    end = tuple(tokenizer(end_of_thinking, add_special_tokens=False)["input_ids"])
    if not end:
        raise UserError(
            f"model.end_of_thinking = {end_of_thinking!r} has no tokens; name the text that closes a rationale."
        )
    if tokenizer.eos_token_id is None:
        raise UserError("the model's tokenizer has no end-of-turn token; set eos_token in its tokenizer_config.json.")
    eos = int(tokenizer.eos_token_id)
    pad = eos if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
    return Markers(end_of_thinking=end, end_of_turn=(eos,), pad=pad)


@contextmanager
def _refused_in_words(what: str, source: str | Path) -> Iterator[None]:
    try:
        yield
    except UNUSABLE as error:
        raise UserError(f"no {what} can be loaded from '{source}': {_reason(source, error)}") from error


def _reason(source: str | Path, error: Exception) -> str:
    path = Path(source)
    if not path.exists() and (path.is_absolute() or len(path.parts) > 2):  # no repository is named like that
        return "there is no such folder."
    return " ".join(str(error).split())[:300]
