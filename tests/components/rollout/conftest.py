"""A taught policy, and how far the log-probabilities of its rollouts lie from the true ones."""

from collections.abc import Iterable

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from components.config import TeachingSettings
from components.policy.embedded import teach
from components.rollout.engine import Rollout
from tests.components.models import plain_logprobs


@pytest.fixture(scope="module")
def taught() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A second of teaching: every marker comes now and then, and nothing is certain."""
    return teach(TeachingSettings(steps=60, batch_size=32, learning_rate=0.01, seed=0), "warm")


@pytest.fixture(scope="module")
def tokenizer(taught: tuple[PreTrainedModel, PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return taught[1]


@pytest.fixture(scope="module")
def policy(taught: tuple[PreTrainedModel, PreTrainedTokenizerFast]) -> PreTrainedModel:
    return taught[0].eval()


def worst_error(model: PreTrainedModel, rollouts: Iterable[Rollout]) -> float:
    """Of the log p of every id, which is 0 for forced ones."""
    return max((torch.tensor(item.logprobs) - _true_logprobs(model, item)).abs().max().item() for item in rollouts)


@torch.no_grad()
def _true_logprobs(model: PreTrainedModel, rollout: Rollout) -> torch.Tensor:
    logprobs = plain_logprobs(model, rollout.prompt_ids, rollout.rationale_ids + rollout.answer_ids)
    end = len(rollout.rationale_ids)
    logprobs[end - rollout.forced_end : end] = 0
    return logprobs
