"""A real `vllm serve`: what it samples, that it has the newest weights, and what is left when a process dies."""

import os
import threading
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
import torch
from transformers import PreTrainedModel

from components.errors import TemporaryError, UserError
from components.policy.embedded import build_tokenizer
from components.policy.markers import Markers
from components.policy.saving import save_policy
from components.rollout.engine import Sampling
from components.rollout.key import KEY, bearer
from components.rollout.server_process import ServerProcess
from components.rollout.vllm_server import VllmServerEngine
from tests.components.models import add_noise
from tests.components.rollout.conftest import worst_error

pytestmark = pytest.mark.slow

SAMPLING = Sampling(max_new_tokens=14, answer_reserve=6, seed=1)
PROMPTS = [(119, 51, 49, 52, 50, 63), (55, 63), (48, 63) * 70]  # the last one fills a block of the prefix cache
TOLERANCE = 1e-4  # nats


@pytest.fixture(scope="module")
def folder(policy: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:

    folder = tmp_path_factory.mktemp("policy")
    save_policy(policy, build_tokenizer(), folder)
    return folder


@pytest.fixture(scope="module")
def markers() -> Markers:

    tokenizer = build_tokenizer()
    [end], [turn], [pad] = tokenizer(["</think>", "<end>", "<pad>"])["input_ids"]
    return Markers((end,), (turn,), pad)


@pytest.fixture(scope="module")
def engine(folder: Path, markers: Markers) -> Iterator[VllmServerEngine]:
    torch.set_num_threads(1)
    os.environ[KEY] = "the key of this test"  # for those who are given nothing but the URL
    server = ServerProcess(folder, dtype="float32", key=os.environ[KEY])
    with VllmServerEngine([server.url], folder, markers, timeout_seconds=60, process=server) as engine:
        yield engine
    assert not any(map(psutil.pid_exists, server.pids))


def test_ten_updates_reach_the_server(engine: VllmServerEngine, policy: PreTrainedModel) -> None:
    trained, random = deepcopy(policy), torch.Generator().manual_seed(0)
    for update in range(11):
        engine.load_weights(trained.state_dict().items())
        groups = engine.generate(PROMPTS, 4, replace(SAMPLING, seed=update))
        rollouts = [rollout for group in groups for rollout in group]
        assert worst_error(trained, rollouts) < TOLERANCE
        add_noise(trained.parameters(), 0.03, random)
        assert worst_error(trained, rollouts) > 10 * TOLERANCE  # so that an update left out would be seen


def test_rollouts_are_those_of_their_seeds_and_places(engine: VllmServerEngine, policy: PreTrainedModel) -> None:
    engine.load_weights(policy.state_dict().items())
    groups = engine.generate(PROMPTS, 8, SAMPLING)
    assert [rollout.rationale_ids for rollout in groups[2]] == [
        rollout.rationale_ids for rollout in engine.generate([PROMPTS[2]], 8, replace(SAMPLING, places=(2,)))[0]
    ]
    assert groups[0] != engine.generate(PROMPTS, 8, replace(SAMPLING, seed=2))[0]
    assert len({rollout.rationale_ids for rollout in groups[0]}) > 4
    for rollout in groups[0] + groups[1]:
        assert rollout.rationale_ids.count(engine.markers.end_of_thinking[0]) == 1
        assert 0 < len(rollout.answer_ids) <= SAMPLING.max_new_tokens - len(rollout.rationale_ids)


def test_nothing_is_served_without_the_key(engine: VllmServerEngine) -> None:
    """vLLM's own key would leave the routes open that renew weights."""
    assert engine.process is not None
    with httpx.Client(base_url=engine.process.url, trust_env=False, timeout=30) as client:
        described = client.get("/openapi.json", headers=bearer(engine.process.key)).json()["paths"]
        routes = [(method, path) for path, methods in described.items() for method in methods]
        assert {("post", "/collective_rpc"), ("post", "/reset_prefix_cache"), ("get", "/v1/models")} <= set(routes)
        for headers in ({}, bearer("another"), {"Authorization": str(engine.process.key)}):
            for method, path in [*routes, ("get", "/openapi.json"), ("get", "/metrics")]:
                status = client.request(method, path, headers=headers).status_code
                assert status == 401 or path == "/health", (method, path, status)


def test_a_client_with_another_key_is_told(
    engine: VllmServerEngine, folder: Path, markers: Markers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "another")
    with pytest.raises(UserError, match=f"{engine.servers[0].url} asks for a key .401., and VLLM_API_KEY is not it"):
        VllmServerEngine([engine.servers[0].url], folder, markers, timeout_seconds=60)


def test_weights_of_somebody_else_are_an_error(engine: VllmServerEngine, policy: PreTrainedModel, folder: Path) -> None:
    engine.load_weights(policy.state_dict().items())
    with VllmServerEngine([engine.servers[0].url], folder, engine.markers, timeout_seconds=60) as other:
        other.load_weights(policy.state_dict().items())
        with pytest.raises(UserError, match=r"still has the weights thaw-.*, not thaw-"):
            engine.generate(PROMPTS, 2, SAMPLING)


def test_a_missing_weight_is_an_error(engine: VllmServerEngine, policy: PreTrainedModel) -> None:
    weights = policy.state_dict()
    del weights["lm_head.weight"]
    with pytest.raises(UserError, match=r"lm_head\.weight"):
        engine.load_weights(weights.items())


def test_a_server_that_was_not_started_for_broadcasts_says_so(
    engine: VllmServerEngine, folder: Path, markers: Markers
) -> None:
    url = engine.servers[0].url
    with pytest.raises(UserError, match=f"server at {url} takes no weights by broadcast .* --weight-transfer-config"):
        VllmServerEngine([url], folder, markers, timeout_seconds=60, transfer="broadcast")


def test_a_server_without_its_routes_or_none_at_all_is_an_error(folder: Path, markers: Markers) -> None:
    with pytest.raises(TemporaryError, match=r"no vLLM server answers at http://127\.0\.0\.1:9; start it"):
        VllmServerEngine(["http://127.0.0.1:9/"], folder, markers, timeout_seconds=5)


# The last tests end the server.


def test_a_stopped_engine_process_is_out_of_time(
    engine: VllmServerEngine, policy: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine.process is not None
    engine.load_weights(policy.state_dict().items())
    core = engine_process(engine.process)
    monkeypatch.setattr(engine.servers[0], "timeout_seconds", 1.0)
    core.suspend()
    try:
        with pytest.raises(
            TemporaryError, match=rf"{engine.process.url} ran out of time .*rollout\.timeout_seconds = 1"
        ):
            engine.generate(PROMPTS, 4, SAMPLING)
    finally:
        core.resume()


def test_a_killed_engine_process_ends_the_step_at_once(engine: VllmServerEngine, policy: PreTrainedModel) -> None:
    assert engine.process is not None
    engine.load_weights(policy.state_dict().items())
    core = engine_process(engine.process)
    threading.Timer(0.5, core.kill).start()
    started = time.monotonic()
    with pytest.raises(TemporaryError, match=f"vLLM server at {engine.process.url} (is gone|failed)"):
        engine.generate([(55, 63)] * 16, 32, Sampling(max_new_tokens=4000, answer_reserve=3999, seed=0))
    assert time.monotonic() - started < engine.servers[0].timeout_seconds


def engine_process(server: ServerProcess) -> psutil.Process:
    """The process that computes: the one of the server's own with most memory."""
    return max(map(psutil.Process, server.pids[1:]), key=lambda process: process.memory_info().rss)
