"""Weights that ZeRO 3 has sharded over processes, whole for a while."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def whole(weights: Sequence[Any]) -> Iterator[None]:
    """Inside, each of these weights is whole on every process, all of which have to enter; others are left alone."""
    sharded = [weight for weight in weights if hasattr(weight, "ds_id")]
    if not sharded:
        yield
        return
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    with GatheredParameters(sharded):
        yield
