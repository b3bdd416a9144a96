"""One `vllm serve` over HTTP: what it is asked for, and for all that goes wrong one sentence that names it."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from components.errors import TemporaryError, UserError
from components.randomness import derive_seed
from components.rollout.draft import Draft


class Placed(NamedTuple):
    """A draft, its place (its prompt's and its own among the n), and the server's engine that its prompt is with."""

    draft: Draft
    place: tuple[int, int]
    engine: int


class RequestFailed(TemporaryError):
    """The server answered that it could not do what it was asked for."""


class ServerClient:
    """Asks one server; timeout_seconds: of one call."""

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        self.url, self.timeout_seconds = url.rstrip("/"), timeout_seconds
        self.context: int | None = self._ask("GET", "/v1/models")["data"][0]["max_model_len"]

    def engines(self) -> int:
        """Among how many engines vLLM's data parallelism divides the requests."""
        processes, of_one_engine = (
            self._ask("GET", "/get_world_size", params={"include_dp": include})["world_size"]
            for include in (True, False)
        )
        return processes // of_one_engine

    async def finish(self, placed: Sequence[Placed], version: str) -> None:
        """Sample drafts to their ends, all at the same time, from the weights of that version.

        Raises:
            UserError: the server has other weights.
            TemporaryError: the time is up, or the server is gone.
        """
        limits = httpx.Limits(max_connections=None)
        try:
            async with (
                asyncio.timeout(self.timeout_seconds),
                httpx.AsyncClient(base_url=self.url, timeout=None, limits=limits, trust_env=False) as client,
                asyncio.TaskGroup() as group,
            ):
                for item in placed:
                    group.create_task(self._finish(client, item, version))
        except TimeoutError:
            raise self._out_of_time(f"sampled {len(placed)} rollouts") from None
        except ExceptionGroup as errors:
            first = errors.exceptions[0]
            raise (self._gone(first) if isinstance(first, httpx.TransportError) else first) from None

    def load(self, folder: Path, version: str) -> None:
        """Take the weights that lie in a folder, and tell their version with every rollout from here on.

        Raises:
            UserError: the server cannot read the folder, or somebody else is using it.
            TemporaryError: the time is up, or the server is gone.
        """
        call = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        try:
            self._ask("POST", "/collective_rpc", json=call)
        except RequestFailed:
            self._ask("GET", "/health")  # one whose engine has died is gone, whatever it can read
            raise UserError(
                f"the vLLM server at {self.url} cannot load the weights in {folder}: set rollout.weights_folder to a"
                " folder that this process and every server see under the same path and may read; the server's log"
                " says more."
            ) from None
        if not self._ask("POST", "/reset_prefix_cache")["success"]:
            raise UserError(f"the vLLM server at {self.url} keeps its prefix cache: somebody else is using it.")
        self._ask("POST", "/update_weight_version", json={"new_version": version})

    async def _finish(self, client: httpx.AsyncClient, item: Placed, version: str) -> None:
        """Send a draft's requests one after the other."""
        draft, place, engine = item
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
            headers = {"X-data-parallel-rank": str(engine)}
            response = await client.post("/inference/v1/generate", json=body, headers=headers)
            choice = self._content(response)["choices"][0]
            versions = {span["version"] for span in choice["weight_versions"] or ()}
            if versions != {version}:
                raise UserError(
                    f"the vLLM server at {self.url} still has the weights {', '.join(sorted(versions)) or 'unknown'},"
                    f" not {version}: it was restarted, or another run renews them; give it to one run."
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
            raise RequestFailed(
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
