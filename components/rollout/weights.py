"""Which weights an engine must be given: vLLM keeps the old tensor of a name that is left out, and says nothing."""

import json
from collections.abc import Collection
from pathlib import Path

from safetensors import safe_open

from components.errors import UserError


def weight_names(folder: Path) -> frozenset[str]:
    """What the policy's state_dict must hold: the names in its folder, and the head, which is not stored if tied."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    else:
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            names = set(file.keys())
    return frozenset(names | {"lm_head.weight"} if config.get("tie_word_embeddings") else names)


def check_names(needed: frozenset[str], given: Collection[str]) -> None:
    """Refuse an incomplete set of weights.

    Raises:
        UserError: a weight is missing.
    """
    missing = needed - set(given)
    if missing:
        raise UserError(
            f"the vLLM engine needs all weights of the policy, but {', '.join(sorted(missing)[:3])}"
            f" ({len(missing)} in all) were not given; pass model.state_dict().items()."
        )
