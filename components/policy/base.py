"""The base model an experiment starts from, as a Hugging Face folder with nothing left to fetch."""

from pathlib import Path

import torch

from components.config import Settings
from components.policy.embedded import teach
from components.policy.model import load_model, load_tokenizer
from components.policy.saving import save_policy


def make_base(settings: Settings, out: Path) -> None:
    """Write the base model to `out`: the embedded one taught, any other loaded from its folder or the hub.

    Raises:
        UserError: model.name leads to no usable model.
    """
    torch.set_num_threads(settings.compute.threads)
    model = settings.model
    if model.name == "embedded":
        policy, tokenizer = teach(settings.teaching, settings.task.start)
    else:
        policy = load_model(model.name, revision=model.revision, dtype=model.dtype)
        tokenizer = load_tokenizer(model.name, revision=model.revision)
    save_policy(policy, tokenizer, out)
