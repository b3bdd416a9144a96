"""Rollouts of examples."""

from collections.abc import Sequence

from components.data.example import Example
from components.errors import UserError
from components.policy.model import Codec
from components.rollout.engine import PromptError, Rollout, RolloutEngine, Sampling


def sample(
    engine: RolloutEngine, codec: Codec, examples: Sequence[Example], n: int, sampling: Sampling
) -> list[list[Rollout]]:
    """n rollouts of each example, in the order of the examples.

    Raises:
        UserError: an example's prompt cannot be sampled, or the engine fails.
    """
    try:
        return engine.generate([codec.prompt(item.prompt) for item in examples], n, sampling)
    except PromptError as error:
        raise UserError(f"example {examples[error.index].id}: {error}") from None
