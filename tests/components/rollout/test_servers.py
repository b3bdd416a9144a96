"""Two real servers, one with two processes for its model and one with two engines, and two processes that sample."""

import json
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from transformers import PreTrainedModel

from components.errors import TemporaryError, UserError
from components.policy.embedded import build_tokenizer
from components.policy.saving import save_policy
from components.rollout.server_process import ServerProcess
from components.rollout.vllm_server import VllmServerEngine
from components.training.ranks import Ranks
from tests.components.models import add_noise
from tests.components.processes import run
from tests.components.rollout.conftest import worst_error
from tests.components.rollout.on_ranks import PROMPTS, ROLLOUTS, SAMPLING, known_markers, steps

pytestmark = pytest.mark.slow

GLOO = '--weight-transfer-config={"backend": "gloo"}'
TOLERANCE = 1e-4  # nats; another batch alone makes less than a tenth of it


@pytest.fixture(scope="module")
def folder(policy: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    save_policy(policy, build_tokenizer(), folder)
    return folder


@pytest.fixture(scope="module")
def processes(folder: Path) -> Iterator[list[ServerProcess]]:
    torch.set_num_threads(1)

    started = [ServerProcess(folder, dtype="float32", options=["--tensor-parallel-size=2", GLOO]), _parallel(folder)]
    yield started
    for process in started:
        process.close()
    assert not any(psutil.pid_exists(pid) for process in started for pid in process.pids)


def _parallel(folder: Path, tries: int = 2) -> ServerProcess:
    """A server with two engines, to which vLLM gives two minutes to start, whatever else the machine does."""
    try:
        return ServerProcess(folder, dtype="float32", options=["--data-parallel-size=2", GLOO])
    except UserError as error:
        if tries == 1:
            pytest.skip(f"vLLM's data-parallel engines did not start on this machine: {error}")
        return _parallel(folder, tries - 1)


@pytest.fixture(scope="module")
def engine(folder: Path, processes: list[ServerProcess]) -> Iterator[VllmServerEngine]:
    urls = [process.url for process in processes]
    with VllmServerEngine(urls, folder, known_markers(), timeout_seconds=300) as engine:
        yield engine


def test_two_processes_sample_what_one_does(engine: VllmServerEngine, folder: Path, tmp_path: Path) -> None:
    """At the same time, each its own groups; only the first one has weights to give."""
    module, urls = "tests.components.rollout.on_ranks", [server.url for server in engine.servers]
    for status, said in run(2, module, folder, tmp_path, *urls, timeout=900):
        assert status == 0, said
    for step, groups in enumerate(steps(engine, folder, Ranks())):
        for place, group in groups.items():
            told = json.loads((tmp_path / f"step-{step}-rank-{place % 2}.json").read_text())[str(place)]
            assert len(told) == ROLLOUTS
            for one, two in zip(group, told, strict=True):
                assert (one.rationale_ids, one.answer_ids) == (tuple(two["rationale_ids"]), tuple(two["answer_ids"]))
                assert one.logprobs == pytest.approx(two["logprobs"], abs=TOLERANCE / 10)


@pytest.fixture(scope="module")
def broadcasting(folder: Path, processes: list[ServerProcess]) -> Iterator[VllmServerEngine]:
    urls = [process.url for process in processes]
    with VllmServerEngine(urls, folder, known_markers(), timeout_seconds=300, transfer="broadcast") as engine:
        yield engine


@pytest.mark.parametrize("way", ["engine", "broadcasting"])
def test_updates_reach_every_process_of_every_server(
    way: str, policy: PreTrainedModel, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a file, and by broadcast, there some weights at a time."""
    monkeypatch.setattr("components.rollout.broadcast.CHUNK_BYTES", 100_000)
    engine: VllmServerEngine = request.getfixturevalue(way)
    trained, random = deepcopy(policy), torch.Generator().manual_seed(1)
    for update in range(3):
        engine.load_weights(trained.state_dict().items())
        groups = engine.generate(PROMPTS, 4, replace(SAMPLING, seed=update))
        for group in groups:
            assert worst_error(trained, group) < TOLERANCE
        add_noise(trained.parameters(), 0.03, random)
        for group in groups:
            assert worst_error(trained, group) > 10 * TOLERANCE  # so that an update left out would be seen


def test_a_prompts_place_says_which_engine_has_it(engine: VllmServerEngine, policy: PreTrainedModel) -> None:
    engine.load_weights(policy.state_dict().items())
    urls = [server.url for server in engine.servers]
    seats = [(urls[0], "0"), (urls[1], "0"), (urls[1], "1")]
    for place in (0, 1, 2, 5):
        before = _requests(urls)
        engine.generate([PROMPTS[0]], 8, replace(SAMPLING, places=(place,), answers=False))
        after = _requests(urls)
        assert {seat for seat in seats if after[seat] > before[seat]} == {seats[place % 3]}, place


def _requests(urls: list[str]) -> dict[tuple[str, str], float]:
    """How many requests each engine of each server has finished."""
    found: dict[tuple[str, str], float] = {}
    for url in urls:
        for family in text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=60, trust_env=False).text):
            for sample in family.samples:
                if sample.name == "vllm:request_success_total":
                    seat = (url, sample.labels["engine"])
                    found[seat] = found.get(seat, 0) + sample.value
    return found


def test_other_weights_on_one_server_are_an_error_that_names_it(
    engine: VllmServerEngine, policy: PreTrainedModel
) -> None:
    engine.load_weights(policy.state_dict().items())
    other = engine.servers[1].url
    httpx.post(f"{other}/update_weight_version", json={"new_version": "another"}, timeout=60, trust_env=False)
    assert len(engine.generate(PROMPTS[:1], 2, SAMPLING)) == 1  # the first server's alone
    with pytest.raises(UserError, match=f"vLLM server at {other} still has the weights another, not thaw-"):
        engine.generate(PROMPTS, 2, SAMPLING)


def test_a_server_that_cannot_read_the_weights_says_so_and_goes_on(
    engine: VllmServerEngine, policy: PreTrainedModel, tmp_path: Path
) -> None:
    server = engine.servers[1]
    with pytest.raises(UserError, match=f"{server.url} cannot load the weights in .*: set rollout.weights_folder"):
        server.load(tmp_path / "not here", "1")
    engine.load_weights(policy.state_dict().items())
    for group in engine.generate(PROMPTS, 2, SAMPLING):
        assert worst_error(policy, group) < TOLERANCE


# The last tests end the servers.


def test_a_killed_server_is_an_error_that_names_it(
    engine: VllmServerEngine,
    broadcasting: VllmServerEngine,
    policy: PreTrainedModel,
    processes: list[ServerProcess],
) -> None:
    engine.load_weights(policy.state_dict().items())
    for pid in processes[1].pids:
        with suppress(psutil.NoSuchProcess):  # some follow others at once
            psutil.Process(pid).kill()
    with pytest.raises(TemporaryError, match=f"vLLM server at {processes[1].url} is gone .* start it anew and resume"):
        engine.generate(PROMPTS, 2, SAMPLING)
    for way in (engine, broadcasting):
        with pytest.raises(TemporaryError, match=f"vLLM server at {processes[1].url} is gone"):
            way.load_weights(policy.state_dict().items())


def test_a_server_that_fails_says_why(processes: list[ServerProcess], folder: Path) -> None:
    """As one would that is asked for samples in the middle of an update of its weights."""
    server = processes[0]
    engine = VllmServerEngine([server.url], folder, known_markers(), timeout_seconds=60, process=server)
    with suppress(TemporaryError):  # the update of the test before has begun there, and has not ended
        engine.servers[0].transfer("start_weight_update", {})
    with pytest.raises(TemporaryError, match=r"failed \(500\): .* Its last words: RuntimeError: Worker failed"):
        engine.generate(PROMPTS, 2, SAMPLING)
