"""One `vllm serve` over HTTP: what it is asked for, and for all that goes wrong one sentence that names it."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from components.errors import Refused, TemporaryError, UserError
from components.randomness import derive_seed
from components.rollout.key import KEY, bearer
from components.rollout.partial_completion import PartialCompletion

BASE = "default"  # vLLM's name for the version of weights that a server was started with
# Rollouts of one request; a server refuses more than it runs at a time, which is 256 on a small GPU.
MOST_AT_ONCE = 64


class Together(NamedTuple):
    """Partial completions of one prompt whose next request is the same, so that they can be asked for at once.

    place: their prompt's, and the first one's among the prompt's. engine: of the server, which has the prompt.
    """

    partials: Sequence[PartialCompletion]
    place: tuple[int, int]
    engine: int

    @classmethod
    def of_prompt(cls, partials: Sequence[PartialCompletion], place: int, engine: int) -> "list[Together]":
        """All partial completions of a prompt that have just begun.

        One request for many is less work, but it is answered when the last one has ended: too late for those that go
        on with an answer.
        """
        size = 1 if partials[0].sampling.answers else MOST_AT_ONCE
        return [cls(partials[first : first + size], (place, first), engine) for first in range(0, len(partials), size)]


class RequestFailed(TemporaryError):
    """The server answered that it could not do what it was asked for."""


class ServerGone(TemporaryError):
    """Nobody listens there."""


class ServerClient:
    """Asks one server."""

    def __init__(self, url: str, *, timeout_seconds: float, adapters: bool = False, key: str | None = None) -> None:
        """timeout_seconds: of one call. adapters: whether these get new versions. key: what the server asks for.

        Raises:
            UserError: what answers there is no vLLM server, or one that asks for a key.
            TemporaryError: nothing answers.
        """
        self.url, self.timeout_seconds, self.adapters = url.rstrip("/"), timeout_seconds, adapters
        self.headers = bearer(key)
        try:
            self.context: int | None = self._ask("GET", "/v1/models")["data"][0]["max_model_len"]
        except ServerGone as gone:
            raise TemporaryError(
                f"no vLLM server answers at {self}; start it, or correct rollout.placement. ({gone.__cause__})"
            ) from None
        except (ValueError, LookupError, TypeError):
            raise UserError(f"what answers at {self} is no vLLM server; correct rollout.placement.") from None

    def __str__(self) -> str:
        return self.url

    def engines(self) -> int:
        """Among how many engines vLLM's data parallelism divides the requests."""
        return self.processes() // self._ask("GET", "/get_world_size", params={"include_dp": False})["world_size"]

    def processes(self) -> int:
        """How many hold weights, or a part of them."""
        return self._ask("GET", "/get_world_size", params={"include_dp": True})["world_size"]

    async def finish(self, begun: Sequence[Together], version: str) -> None:
        """Sample partial completions to their ends, all at the same time, from the weights of that version.

        Raises:
            UserError: the server has other weights.
            TemporaryError: the time is up, or the server is gone.
        """
        # A connection that lay idle may be closed by the server just when it is used again: each request has its own.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        options = {"base_url": self.url, "headers": self.headers, "trust_env": False}
        try:
            async with (
                asyncio.timeout(self.timeout_seconds),
                httpx.AsyncClient(timeout=None, limits=limits, **options) as client,
                asyncio.TaskGroup() as group,
            ):
                for alike in begun:
                    group.create_task(self._finish(client, alike, version))
        except TimeoutError:
            rollouts = sum(len(alike.partials) for alike in begun)
            raise self._out_of_time(f"sampled {rollouts} rollouts") from None
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
                f"the vLLM server at {self} cannot load the weights in {folder}: set rollout.weights_folder to a"
                " folder that this process and every server see under the same path and may read; the server's log"
                " says more."
            ) from None
        self.forget_prefixes()
        self._ask("POST", "/update_weight_version", json={"new_version": version})

    def load_adapters(self, folder: Path, version: str, before: str | None) -> None:
        """Take the adapters that lie in a folder as those of `version`, and drop those of the version before.

        Their names keep the keys and values of one version from being taken for those of another.

        Raises:
            UserError: the server was not started for adapters, or cannot read the folder.
            TemporaryError: the time is up, or the server is gone.
        """
        try:
            self._ask("POST", "/v1/load_lora_adapter", json={"lora_name": version, "lora_path": str(folder)})
        except (RequestFailed, UserError) as error:
            self._ask("GET", "/health")  # one whose engine has died is gone
            raise UserError(
                f"the vLLM server at {self} takes no adapters from {folder} ({error}): start it with --enable-lora,"
                " --max-lora-rank and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, and see that it can read that folder; or set"
                " rollout.transfer to file."
            ) from None
        if before is not None:
            self._ask("POST", "/v1/unload_lora_adapter", json={"lora_name": before})

    def forget_prefixes(self) -> None:
        """Drop keys and values of old weights.

        Raises:
            UserError: somebody else is using the server.
        """
        if not self._ask("POST", "/reset_prefix_cache")["success"]:
            raise UserError(f"the vLLM server at {self} keeps its prefix cache: somebody else is using it.")

    def transfer(self, path: str, body: dict[str, Any]) -> None:
        """One call of vLLM's weight transfer, such as `start_weight_update`.

        Raises:
            UserError: the server was not started for it.
            TemporaryError: the time is up, or the server is gone.
        """
        try:
            self._ask("POST", f"/{path}", json=body)
        except RequestFailed as failure:
            self._ask("GET", "/health")  # one whose engine has died is gone
            if path != "init_weight_transfer_engine":
                raise
            raise UserError(
                f"the vLLM server at {self} takes no weights by broadcast ({failure}): start it with"
                """ --weight-transfer-config '{"backend": "nccl"}' ("gloo" on CPUs), or set rollout.transfer to file."""
            ) from None

    async def _finish(self, client: httpx.AsyncClient, alike: Together, version: str) -> None:
        """Send the next request of some, and then what each of them still needs, one after the other."""
        partials, place, engine = alike
        request = partials[0].next_request()
        if request is None:
            return
        body = _body(partials[0], len(partials), place, *request) | ({"model": version} if self._names(version) else {})
        headers = {"X-data-parallel-rank": str(engine)}
        response = await client.post("/inference/v1/generate", json=body, headers=headers)
        if response.status_code == 404 and self._names(version):
            raise self._other_weights("none", version)
        content = self._content(response)
        choices = sorted(content["choices"], key=lambda choice: choice["index"])
        versions = {span["version"] for choice in choices for span in choice["weight_versions"] or ()}
        if self._names(version):
            versions = {content["model"]}
        if versions != {version}:
            raise self._other_weights(", ".join(sorted(versions)) or "unknown", version)
        for partial, choice in zip(partials, choices, strict=True):
            partial.extend(choice["token_ids"], [content["logprob"] for content in choice["logprobs"]["content"]])
        singly = [
            Together([partial], (place[0], member), engine) for member, partial in enumerate(partials, start=place[1])
        ]
        await asyncio.gather(*(self._finish(client, one, version) for one in singly))

    def _names(self, version: str) -> bool:
        """Whether a request names the weights it is for: a server has the base model beside every adapter."""
        return self.adapters and version != BASE

    def _other_weights(self, found: str, version: str) -> UserError:
        return UserError(
            f"the vLLM server at {self} still has the weights {found}, not {version}: it was restarted, or another"
            " run renews them; give it to one run."
        )

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        try:
            with httpx.Client(
                base_url=self.url, headers=self.headers, timeout=self.timeout_seconds, trust_env=False
            ) as client:
                return self._content(client.request(method, path, **options))
        except httpx.TimeoutException:
            raise self._out_of_time(f"answered {path}") from None
        except httpx.TransportError as error:
            raise self._gone(error) from error

    def _content(self, response: httpx.Response) -> Any:
        if response.status_code == 404:
            raise UserError(
                f"the vLLM server at {self} has no {response.request.url.path}: start it with"
                " VLLM_SERVER_DEV_MODE=1 and --tokens-only."
            )
        if response.status_code in (401, 403):
            raise Refused(
                f"the vLLM server at {self} asks for a key ({response.status_code}), and {KEY} is not it: set it to"
                " the server's."
            )
        if response.is_error:
            raise RequestFailed(
                f"the vLLM server at {self} failed ({response.status_code}): {' '.join(response.text.split())[:300]};"
                " see its log, start it anew and resume."
            )
        is_json = response.headers.get("content-type", "").startswith("application/json")
        return response.json() if is_json and response.content else None

    def _out_of_time(self, work: str) -> TemporaryError:
        return TemporaryError(
            f"the vLLM server at {self} ran out of time while it {work}: it is stuck, or"
            f" rollout.timeout_seconds = {self.timeout_seconds:g} is too short; resume with more time or a new server."
        )

    def _gone(self, error: Exception) -> ServerGone:
        return ServerGone(
            f"the vLLM server at {self} is gone ({type(error).__name__}); start it anew and resume from the last"
            " checkpoint."
        )


def _body(
    partial: PartialCompletion, n: int, place: tuple[int, int], most: int, stop: tuple[int, ...]
) -> dict[str, Any]:
    """A request for n completions like this one; vLLM gives each of them a seed of its own, from ours on."""
    parameters = {
        "n": n,
        "max_tokens": most,
        "stop_token_ids": stop,
        "temperature": partial.sampling.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        # The number of ids tells a rollout's requests apart: no two begin at the same one.
        "seed": derive_seed(partial.sampling.seed, *place, len(partial.ids)),
        "ignore_eos": True,  # the markers alone say what ends
        "logprobs": 0,  # of the sampled id alone
        "detokenize": False,
    }
    return {"token_ids": [*partial.prompt, *partial.ids], "sampling_params": parameters}
