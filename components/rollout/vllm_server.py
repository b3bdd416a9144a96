"""Rollouts from `vllm serve`: processes of their own, on this machine or others, for one training process or many.

Token ids go in and out over HTTP. New weights come by a broadcast, or through a file that both sides see. They carry a
version, which a server returns with every rollout: one sampled with other weights is an error.
"""

import asyncio
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self
from uuid import uuid4

import torch

from components.policy.markers import Markers
from components.rollout.broadcast import Broadcast
from components.rollout.engine import Alone, Peers, Rollout, Sampling, check_request
from components.rollout.key import KEY
from components.rollout.partial_completion import PartialCompletion
from components.rollout.server_client import BASE, RequestFailed, ServerClient, ServerGone, Together
from components.rollout.server_process import ServerProcess
from components.rollout.weight_file import AdapterFile, WeightFile
from components.rollout.weights import check_names, weight_names

Transfer = Literal["file", "broadcast", "adapters"]


class VllmServerEngine:
    """Samples from servers that were started with

    VLLM_SERVER_DEV_MODE=1 vllm serve FOLDER --tokens-only --logprobs-mode raw_logprobs --generation-config vllm

    VLLM_SERVER_DEV_MODE opens the routes that renew weights, to anybody who reaches them: give such a server a key
    (key.py), and keep it inside.

    A prompt's place in the step says which server has it, and which engine there if vLLM runs several (its data
    parallelism): all rollouts of a prompt find its keys and values in one prefix cache, whichever process asks.
    """

    def __init__(
        self,
        urls: Sequence[str],
        folder: Path,
        markers: Markers,
        *,
        timeout_seconds: float,
        weights_folder: Path | None = None,
        transfer: Transfer = "file",
        lora_rank: int = 0,
        process: ServerProcess | None = None,
        peers: Peers | None = None,
    ) -> None:
        """urls: of the servers. folder: the Hugging Face folder of the policy. timeout_seconds: of one call.

        weights_folder: seen by the servers under the same path; None takes this machine's shared memory.
        transfer: whether all weights reach the servers through that folder, adapters alone, or all by a broadcast.
        lora_rank: of the adapters.
        process: a server that was started for this engine and ends with it.
        peers: the processes that share the servers. The first one gives them weights, for all.
        """
        self.markers, self.process, self.peers = markers, process, peers or Alone()
        key = self.peers.share(self.process.key if self.process else os.environ.get(KEY))
        alone = transfer == "adapters"
        self.servers = [ServerClient(url, timeout_seconds=timeout_seconds, adapters=alone, key=key) for url in urls]
        limits = [server.context for server in self.servers if server.context is not None]
        self.context = min(limits, default=None)
        engines = self.peers.share([server.engines() for server in self.servers] if self.peers.first else [])
        # Every engine of every server in turn: the first ones of all servers, then the second ones, and so on.
        self._seats = [
            (server, number) for number in range(max(engines)) for server, own in enumerate(engines) if number < own
        ]
        self._weight_names = frozenset() if alone else weight_names(folder)
        self._way: Broadcast | WeightFile | None = None
        if self.peers.first and transfer == "broadcast":
            self._way = Broadcast(self.servers, timeout_seconds=timeout_seconds)
        elif self.peers.first and alone:
            self._way = AdapterFile(self.servers, weights_folder, lora_rank)
        elif self.peers.first:
            self._way = WeightFile(self.servers, weights_folder)
        self._version = BASE

    def generate(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[list[Rollout]]:
        """n rollouts for each prompt, in the order of the prompts; each has a random stream of its own.

        Raises:
            UserError: a prompt or the budget is refused, or a server has other weights.
            TemporaryError: the time is up, or a server is gone.
        """
        check_request(prompts, sampling, self.markers, self.context)
        groups = [[PartialCompletion(tuple(prompt), self.markers, sampling) for _ in range(n)] for prompt in prompts]
        shares: list[list[Together]] = [[] for _ in self.servers]
        for place, partials in zip(sampling.places or range(len(prompts)), groups, strict=True):
            server, engine = self._seats[place % len(self._seats)]
            shares[server] += Together.of_prompt(partials, place, engine)

        async def finish_all() -> None:
            async with asyncio.TaskGroup() as tasks:
                for server, share in zip(self.servers, shares, strict=True):
                    tasks.create_task(server.finish(share, self._version))

        with self._last_words():
            try:
                asyncio.run(finish_all())
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return [[partial.rollout() for partial in partials] for partials in groups]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take new weights, by the names of the Hugging Face model's state_dict, or adapters, by those of peft.

        They are the first process's, for all.

        Raises:
            UserError: a weight is missing, or a server cannot take them.
            TemporaryError: the time is up, or a server is gone.
        """
        # A server may have served somebody else: only rollouts of weights that came from here are taken.
        version = f"thaw-{uuid4()}"
        self.peers.share(None)  # none of them samples any more: a server must not lose the weights that it samples from
        if self._way:
            with self._last_words():
                check_names(self._weight_names, self._way.send(weights, version))
        for _ in weights:  # the processes gather them together; the first one has done so
            pass
        self._version = self.peers.share(version)

    @contextmanager
    def _last_words(self) -> Iterator[None]:
        """Add to an error what the server that was started here said last; nobody else sees its log."""
        try:
            yield
        except (RequestFailed, ServerGone) as error:
            words = self.process.last_words() if self.process else None
            raise type(error)(f"{error} Its last words: {words}") if words else error from None

    def sleep(self) -> None:
        """The servers keep their memory: they have their own devices."""

    def close(self) -> None:
        """End the server that was started for this engine."""
        if self._way is not None:
            self._way.close()
        if self.process is not None:
            self.process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
