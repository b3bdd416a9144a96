"""Rollouts from `vllm serve`: processes of their own, on this machine or others, with vLLM's own parallelism.

Any number of training processes may sample from any number of servers. All rollouts of a prompt come from one server,
which has it in its prefix cache. Token ids go in and out over HTTP. New weights are written as safetensors to a folder
that all sides see (shared memory on one machine, a shared file system across machines), and vLLM reloads them from
there. They carry a version, which a server returns with every rollout: one sampled with other weights is an error.
"""

import asyncio
import itertools
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import torch
from safetensors.torch import save_file

from components.errors import TemporaryError, UserError
from components.randomness import derive_seed
from components.rollout.draft import Draft
from components.rollout.engine import Alone, Markers, Peers, Rollout, Sampling, check_request
from components.rollout.server_process import ServerProcess
from components.rollout.weights import check_names, weight_names

SHARED_MEMORY = Path("/dev/shm")


class VllmServerEngine:
    """Samples from servers that were started with

    VLLM_SERVER_DEV_MODE=1 vllm serve FOLDER --tokens-only --logprobs-mode raw_logprobs --generation-config vllm

    VLLM_SERVER_DEV_MODE opens the routes that renew weights, to anybody who reaches them: keep such a server inside.
    """

    def __init__(
        self,
        urls: Sequence[str],
        folder: Path,
        markers: Markers,
        *,
        timeout_seconds: float,
        weights_folder: Path | None = None,
        process: ServerProcess | None = None,
        peers: Peers | None = None,
    ) -> None:
        """folder: the Hugging Face folder of the policy. timeout_seconds: of one call.

        weights_folder: seen by the servers under the same path; None takes this machine's shared memory.
        process: the server, if it was started for this engine and is to end with it.
        peers: the processes that use the same servers, each with an engine of its own; None: this one alone.
        """
        self.servers = [_Server(url.rstrip("/"), timeout_seconds) for url in urls]
        self.markers, self.timeout_seconds = markers, timeout_seconds
        self.process, self.peers = process, peers or Alone()
        self._weight_names = weight_names(folder)
        parent = weights_folder or (SHARED_MEMORY if SHARED_MEMORY.is_dir() else None)
        _remove_left_over(parent)
        self._weights = Path(tempfile.mkdtemp(prefix=f"{_prefix(os.getpid())}-", dir=parent))
        # A server may have served somebody else: only rollouts of weights that came from here are taken.
        self._owner, self._version, self._loads = self._weights.name, "default", itertools.count(1)
        self.context: int = min(server.context() for server in self.servers)

    def generate(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[list[Rollout]]:
        """n rollouts for each prompt, in the order of the prompts; each has a random stream of its own.

        Raises:
            UserError: a prompt or the budget is refused; the time is up or a server is gone; it has other weights.
        """
        check_request(prompts, sampling, self.markers, self.context)
        drafts = [Draft(tuple(prompt), self.markers, sampling) for prompt in prompts for _ in range(n)]
        places = sampling.places or range(len(prompts))

        async def all_drafts() -> None:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(asyncio.timeout(self.timeout_seconds))
                clients = [await stack.enter_async_context(server.client()) for server in self.servers]
                group = await stack.enter_async_context(asyncio.TaskGroup())
                for number, draft in enumerate(drafts):
                    place = places[number // n]
                    server = place % len(self.servers)
                    sent = self._finish(self.servers[server], clients[server], draft, (place, number % n))
                    group.create_task(sent)

        try:
            asyncio.run(all_drafts())
        except TimeoutError:
            raise self._out_of_time(len(drafts)) from None
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        rollouts = [draft.rollout() for draft in drafts]
        return [rollouts[first : first + n] for first in range(0, len(rollouts), n)]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take new weights, by the names of the Hugging Face model's state_dict.

        Raises:
            UserError: a weight is missing, the time is up, or a server is gone.
        """
        if self.peers.first:
            # Tied weights are one tensor under two names, which safetensors refuses: each gets its own.
            tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights}
            check_names(self._weight_names, tensors)
            self._version = self._load(tensors)
        else:
            for _ in weights:  # which all gather together
                pass
        self._version = self.peers.share(self._version)

    def _load(self, tensors: dict[str, torch.Tensor]) -> str:
        """Bring all servers to these weights; returns their version."""
        version = f"{self._owner}/{next(self._loads)}"
        folder = self._weights / version.rpartition("/")[2]
        folder.mkdir()
        try:
            save_file(tensors, folder / "model.safetensors")
            with ThreadPoolExecutor(len(self.servers)) as pool:
                list(pool.map(lambda server: server.reload(folder, version), self.servers))
        finally:
            shutil.rmtree(folder)
        return version

    def sleep(self) -> None:
        """A server keeps its memory: it has its own devices."""

    def close(self) -> None:
        """Give back the shared memory, and end the server if it was started for this engine."""
        shutil.rmtree(self._weights, ignore_errors=True)
        if self.process is not None:
            self.process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def _finish(self, server: "_Server", client: httpx.AsyncClient, draft: Draft, place: tuple[int, int]) -> None:
        """Send a draft's requests one after the other; place: its prompt's and its own among the n."""
        while (request := draft.next_request()) is not None:
            most, stop = request
            parameters = {
                "max_tokens": most,
                "stop_token_ids": stop,
                "temperature": draft.sampling.temperature,
                "top_p": 1.0,
                "top_k": 0,
                "min_p": 0.0,
                # The number of ids tells a rollout's requests apart: no two begin at the same one.
                "seed": derive_seed(draft.sampling.seed, *place, len(draft.ids)),
                "ignore_eos": True,  # the markers alone say what ends
                "logprobs": 0,  # of the sampled id alone
                "detokenize": False,
            }
            body = {"token_ids": [*draft.prompt, *draft.ids], "sampling_params": parameters}
            try:
                response = await client.post("/inference/v1/generate", json=body)
            except httpx.TransportError as error:
                raise server.gone(error) from None
            choice = server.content(response)["choices"][0]
            versions = {span["version"] for span in choice["weight_versions"] or ()}
            if versions != {self._version}:
                raise UserError(
                    f"the vLLM server at {server.url} still has the weights {', '.join(sorted(versions)) or 'unknown'},"
                    f" not {self._version}: it was restarted, or another run renews them; give it to one run."
                )
            draft.extend(choice["token_ids"], [content["logprob"] for content in choice["logprobs"]["content"]])

    def _out_of_time(self, drafts: int) -> TemporaryError:
        urls = [server.url for server in self.servers]
        which = urls[0] if len(urls) == 1 else f"one of {', '.join(urls)}"
        return _too_slow(which, f"sampled {drafts} rollouts", self.timeout_seconds)


class _Server:
    """One server, by its URL; every fault names it."""

    def __init__(self, url: str, timeout_seconds: float) -> None:
        self.url, self.timeout_seconds = url, timeout_seconds

    def client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(base_url=self.url, timeout=None, limits=limits, trust_env=False)

    def context(self) -> int:
        """The most ids of prompt and completion that it takes."""
        return self.ask("GET", "/v1/models")["data"][0]["max_model_len"]

    def reload(self, folder: Path, version: str) -> None:
        """Let it take the weights in `folder`, and call them `version`."""
        self.ask("POST", "/collective_rpc", json={"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
        if not self.ask("POST", "/reset_prefix_cache")["success"]:
            raise UserError(f"the vLLM server at {self.url} keeps its prefix cache: somebody else is using it.")
        self.ask("POST", "/update_weight_version", json={"new_version": version})

    def ask(self, method: str, path: str, **options: Any) -> Any:
        try:
            with httpx.Client(base_url=self.url, timeout=self.timeout_seconds, trust_env=False) as client:
                return self.content(client.request(method, path, **options))
        except httpx.TimeoutException:
            raise _too_slow(self.url, f"answered {path}", self.timeout_seconds) from None
        except httpx.TransportError as error:
            raise self.gone(error) from None

    def content(self, response: httpx.Response) -> Any:
        if response.status_code == 404:
            raise UserError(
                f"the vLLM server at {self.url} has no {response.request.url.path}: start it with"
                " VLLM_SERVER_DEV_MODE=1 and --tokens-only."
            )
        if response.is_error:
            raise TemporaryError(
                f"the vLLM server at {self.url} failed ({response.status_code}): {response.text[:300]};"
                " see its log, start it anew and resume."
            )
        return response.json() if response.content else None

    def gone(self, error: Exception) -> TemporaryError:
        return TemporaryError(
            f"the vLLM server at {self.url} is gone ({type(error).__name__}); start it anew and resume from the last"
            " checkpoint."
        )


def _too_slow(urls: str, work: str, seconds: float) -> TemporaryError:
    return TemporaryError(
        f"the vLLM server at {urls} ran out of time while it {work}: it is stuck, or rollout.timeout_seconds ="
        f" {seconds:g} is too short; resume with more time or a new server."
    )


def _remove_left_over(parent: Path | None) -> None:
    """Remove the weights of engines whose process was killed: nobody else frees their shared memory."""
    for folder in (parent or Path(tempfile.gettempdir())).glob(_prefix("*")):
        pid, *rest = folder.name.removeprefix(_prefix("")).split("-")
        if len(rest) == 1 and not psutil.pid_exists(int(pid)):  # `host-2` is no process of `host`
            shutil.rmtree(folder, ignore_errors=True)


def _prefix(pid: int | str) -> str:
    """Of folders for weights; with the machine's name, for processes of others cannot be seen from here."""
    return f"thaw-weights-{socket.gethostname()}-{pid}"
