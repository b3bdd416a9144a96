"""Adapters alone on a real `vllm serve` that keeps its base model: each version reaches it, and is told from others."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from components.errors import UserError
from components.policy.embedded import build_tokenizer
from components.policy.lora import adapters, add_adapters
from components.policy.saving import save_policy
from components.rollout.engine import Sampling
from components.rollout.open import open_engine
from components.rollout.vllm_server import VllmServerEngine
from tests.components.models import add_noise
from tests.components.rollout.conftest import worst_error
from tests.components.rollout.on_ranks import known_markers
from tests.conftest import small_settings

SAMPLING = Sampling(max_new_tokens=14, answer_reserve=6, seed=1)
PROMPTS = [(119, 51, 49, 52, 50, 63), (55, 63), (48, 63) * 70]  # the last one fills a block of the prefix cache
TOLERANCE = 1e-4  # nats
SERVER = ["rollout.engine=vllm", "rollout.placement=server", "rollout.transfer=adapters", "train.lora_rank=3"]


@pytest.mark.slow
def test_updates_of_adapters_reach_the_server(policy: PreTrainedModel, tmp_path: Path) -> None:
    save_policy(policy, build_tokenizer(), tmp_path / "base")
    settings, trained, random = small_settings(*SERVER), deepcopy(policy), torch.Generator().manual_seed(0)
    add_adapters(trained, settings.train.lora_rank, seed=0)  # they change nothing at first
    torch.set_num_threads(1)
    with open_engine(settings, None, tmp_path / "base", known_markers()) as engine:
        assert isinstance(engine, VllmServerEngine)
        for update in range(5):
            groups = engine.generate(PROMPTS, 4, replace(SAMPLING, seed=update))  # at first without any adapters
            rollouts = [rollout for group in groups for rollout in group]
            assert worst_error(trained, rollouts) < TOLERANCE
            add_noise((weight for _, weight in adapters(trained)), 0.1, random)
            assert worst_error(trained, rollouts) > 10 * TOLERANCE  # so that an update left out would be seen
            engine.load_weights(adapters(trained))
        [server] = engine.servers
        server._ask("POST", "/v1/unload_lora_adapter", json={"lora_name": engine._version})
        with pytest.raises(UserError, match=r"still has the weights none, not thaw-.*give it to one run\.$"):
            engine.generate(PROMPTS, 1, SAMPLING)
        with pytest.raises(UserError, match=r"takes no adapters from .* start it with --enable-lora"):
            server.load_adapters(tmp_path, "thaw-nothing", None)
