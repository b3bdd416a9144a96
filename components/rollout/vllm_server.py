"""Rollouts from `vllm serve`: a process of its own, on this machine or another, with vLLM's own data parallelism.

Token ids go in and out over HTTP. New weights are written as safetensors to a folder that both sides see (shared memory
on one machine, a shared file system across machines), and vLLM reloads them from there. They carry a version, which the
server returns with every rollout: one sampled with other weights is an error.
"""

import asyncio
import itertools
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import torch
from safetensors.torch import save_file

from components.errors import TemporaryError, UserError
from components.randomness import derive_seed
from components.rollout.draft import Draft
from components.rollout.engine import Markers, Rollout, Sampling, check_request
from components.rollout.server_process import ServerProcess
from components.rollout.weights import check_names, weight_names

SHARED_MEMORY = Path("/dev/shm")


class VllmServerEngine:
    """Samples from a server that was started with

    VLLM_SERVER_DEV_MODE=1 vllm serve FOLDER --tokens-only --logprobs-mode raw_logprobs --generation-config vllm

    VLLM_SERVER_DEV_MODE opens the routes that renew weights, to anybody who reaches them: keep such a server inside.
    """

    def __init__(
        self,
        server: "str | ServerProcess",
        folder: Path,
        markers: Markers,
        *,
        timeout_seconds: float,
        weights_folder: Path | None = None,
    ) -> None:
        """server: a URL, or the process that was started for this engine and ends with it.

        folder: the Hugging Face folder of the policy. timeout_seconds: of one call.
        weights_folder: seen by the server under the same path; None takes this machine's shared memory.
        """
        self.process = server if isinstance(server, ServerProcess) else None
        self.url = server.url if isinstance(server, ServerProcess) else server.rstrip("/")
        self.markers, self.timeout_seconds = markers, timeout_seconds
        self._weight_names = weight_names(folder)
        parent = weights_folder or (SHARED_MEMORY if SHARED_MEMORY.is_dir() else None)
        _remove_left_over(parent)
        self._weights = Path(tempfile.mkdtemp(prefix=f"{_prefix(os.getpid())}-", dir=parent))
        # A server may have served somebody else: only rollouts of weights that came from here are taken.
        self._owner, self._version, self._loads = self._weights.name, "default", itertools.count(1)
        self.context: int | None = self._ask("GET", "/v1/models")["data"][0]["max_model_len"]

    def generate(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[list[Rollout]]:
        """n rollouts for each prompt, in the order of the prompts; each has a random stream of its own.

        Raises:
            UserError: a prompt or the budget is refused; the time is up or the server is gone; it has other weights.
        """
        check_request(prompts, sampling, self.markers, self.context)
        drafts = [Draft(tuple(prompt), self.markers, sampling) for prompt in prompts for _ in range(n)]
        places = sampling.places or range(len(prompts))

        async def all_drafts() -> None:
            limits = httpx.Limits(max_connections=None)
            async with (
                asyncio.timeout(self.timeout_seconds),
                httpx.AsyncClient(base_url=self.url, timeout=None, limits=limits, trust_env=False) as client,
                asyncio.TaskGroup() as group,
            ):
                for number, draft in enumerate(drafts):
                    group.create_task(self._finish(client, draft, (places[number // n], number % n)))

        try:
            asyncio.run(all_drafts())
        except TimeoutError:
            raise self._out_of_time(f"sampled {len(drafts)} rollouts") from None
        except ExceptionGroup as errors:
            first = errors.exceptions[0]
            raise (self._gone(first) if isinstance(first, httpx.TransportError) else first) from None
        rollouts = [draft.rollout() for draft in drafts]
        return [rollouts[first : first + n] for first in range(0, len(rollouts), n)]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take new weights, by the names of the Hugging Face model's state_dict.

        Raises:
            UserError: a weight is missing, the time is up, or the server is gone.
        """
        # Tied weights are one tensor under two names, which safetensors refuses: each gets its own.
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights}
        check_names(self._weight_names, tensors)
        version = f"{self._owner}/{next(self._loads)}"
        folder = self._weights / version.rpartition("/")[2]
        folder.mkdir()
        try:
            save_file(tensors, folder / "model.safetensors")
            call = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
            self._ask("POST", "/collective_rpc", json=call)
            if not self._ask("POST", "/reset_prefix_cache")["success"]:
                raise UserError(f"the vLLM server at {self.url} keeps its prefix cache: somebody else is using it.")
            self._ask("POST", "/update_weight_version", json={"new_version": version})
        finally:
            shutil.rmtree(folder)
        self._version = version

    def sleep(self) -> None:
        """The server keeps its memory: it has its own devices."""

    def close(self) -> None:
        """Give back the shared memory, and end the server if it was started for this engine."""
        shutil.rmtree(self._weights, ignore_errors=True)
        if self.process is not None:
            self.process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def _finish(self, client: httpx.AsyncClient, draft: Draft, place: tuple[int, int]) -> None:
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
            response = await client.post("/inference/v1/generate", json=body)
            choice = self._content(response)["choices"][0]
            versions = {span["version"] for span in choice["weight_versions"] or ()}
            if versions != {self._version}:
                raise UserError(
                    f"the vLLM server at {self.url} still has the weights {', '.join(sorted(versions)) or 'unknown'},"
                    f" not {self._version}: it was restarted, or another run renews them; give it to one run."
                )
            draft.extend(choice["token_ids"], [content["logprob"] for content in choice["logprobs"]["content"]])

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        try:
            with httpx.Client(base_url=self.url, timeout=self.timeout_seconds, trust_env=False) as client:
                return self._content(client.request(method, path, **options))
        except httpx.TimeoutException:
            raise self._out_of_time(f"answered {path}") from None
        except httpx.TransportError as error:
            raise self._gone(error) from None

    def _content(self, response: httpx.Response) -> Any:
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

    def _out_of_time(self, work: str) -> TemporaryError:
        return TemporaryError(
            f"the vLLM server at {self.url} ran out of time while it {work}: it is stuck, or"
            f" rollout.timeout_seconds = {self.timeout_seconds:g} is too short; resume with more time or a new server."
        )

    def _gone(self, error: Exception) -> TemporaryError:
        return TemporaryError(
            f"the vLLM server at {self.url} is gone ({type(error).__name__}); start it anew and resume from the last"
            " checkpoint."
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
