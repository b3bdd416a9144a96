"""Rollouts from `vllm serve`: processes of their own, on this machine or others, for one training process or many.

Token ids go in and out over HTTP. New weights are written as safetensors to a folder that both sides see (shared memory
on one machine, a shared file system across machines), and vLLM reloads them from there. They carry a version, which a
server returns with every rollout: one sampled with other weights is an error.
"""

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import psutil
import torch
from safetensors.torch import save_file

from components.rollout.draft import Draft
from components.rollout.engine import Alone, Markers, Peers, Rollout, Sampling, check_request
from components.rollout.server_client import ServerClient, Together
from components.rollout.server_process import ServerProcess
from components.rollout.weights import check_names, weight_names

SHARED_MEMORY = Path("/dev/shm")


class VllmServerEngine:
    """Samples from servers that were started with

    VLLM_SERVER_DEV_MODE=1 vllm serve FOLDER --tokens-only --logprobs-mode raw_logprobs --generation-config vllm

    VLLM_SERVER_DEV_MODE opens the routes that renew weights, to anybody who reaches them: keep such a server inside.

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
        process: ServerProcess | None = None,
        peers: Peers | None = None,
    ) -> None:
        """urls: of the servers. folder: the Hugging Face folder of the policy. timeout_seconds: of one call.

        weights_folder: seen by the servers under the same path; None takes this machine's shared memory.
        process: a server that was started for this engine and ends with it.
        peers: the processes that share the servers. The first one gives them weights, for all.
        """
        self.markers, self.process, self.peers = markers, process, peers or Alone()
        self.servers = [ServerClient(url, timeout_seconds=timeout_seconds) for url in urls]
        limits = [server.context for server in self.servers if server.context is not None]
        self.context = min(limits, default=None)
        engines = self.peers.share([server.engines() for server in self.servers] if self.peers.first else [])
        # Every engine of every server in turn: the first ones of all servers, then the second ones, and so on.
        self._seats = [
            (server, number) for number in range(max(engines)) for server, own in enumerate(engines) if number < own
        ]
        self._weight_names = weight_names(folder)
        self._weights_folder = weights_folder or (SHARED_MEMORY if SHARED_MEMORY.is_dir() else None)
        _remove_left_over(self._weights_folder)
        self._version = "default"

    def generate(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[list[Rollout]]:
        """n rollouts for each prompt, in the order of the prompts; each has a random stream of its own.

        Raises:
            UserError: a prompt or the budget is refused, or a server has other weights.
            TemporaryError: the time is up, or a server is gone.
        """
        check_request(prompts, sampling, self.markers, self.context)
        groups = [[Draft(tuple(prompt), self.markers, sampling) for _ in range(n)] for prompt in prompts]
        shares: list[list[Together]] = [[] for _ in self.servers]
        for place, drafts in zip(sampling.places or range(len(prompts)), groups, strict=True):
            server, engine = self._seats[place % len(self._seats)]
            shares[server] += Together.of_prompt(drafts, place, engine)

        async def finish_all() -> None:
            async with asyncio.TaskGroup() as tasks:
                for server, share in zip(self.servers, shares, strict=True):
                    tasks.create_task(server.finish(share, self._version))

        try:
            asyncio.run(finish_all())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [[draft.rollout() for draft in drafts] for drafts in groups]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take new weights, by the names of the Hugging Face model's state_dict: the first process's, for all.

        Raises:
            UserError: a weight is missing, or a server cannot take them.
            TemporaryError: the time is up, or a server is gone.
        """
        version = self._give(weights) if self.peers.first else ""
        for _ in weights:  # the processes gather them together; the first one has done so
            pass
        self._version = self.peers.share(version)

    def _give(self, weights: Iterable[tuple[str, torch.Tensor]]) -> str:
        """Let all servers load the weights, at the same time; returns the version they are known by from here on."""
        # Tied weights are one tensor under two names, which safetensors refuses: each gets its own.
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights}
        check_names(self._weight_names, tensors)
        prefix = f"{_prefix(os.getpid())}-"
        with (
            tempfile.TemporaryDirectory(prefix=prefix, dir=self._weights_folder) as folder,
            ThreadPoolExecutor(len(self.servers)) as threads,
        ):
            save_file(tensors, Path(folder) / "model.safetensors")
            # A server may have served somebody else: only rollouts of weights that came from here are taken.
            version = Path(folder).name
            list(threads.map(lambda server: server.load(Path(folder), version), self.servers))
        return version

    def sleep(self) -> None:
        """The servers keep their memory: they have their own devices."""

    def close(self) -> None:
        """End the server that was started for this engine."""
        if self.process is not None:
            self.process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _remove_left_over(parent: Path | None) -> None:
    """Remove the weights of engines whose process was killed: nobody else frees their shared memory."""
    for folder in (parent or Path(tempfile.gettempdir())).glob(_prefix("*")):
        pid, *rest = folder.name.removeprefix(_prefix("")).split("-")
        if len(rest) == 1 and not psutil.pid_exists(int(pid)):  # `host-2` is no process of `host`
            shutil.rmtree(folder, ignore_errors=True)


def _prefix(pid: int | str) -> str:
    """Of folders for weights; with the machine's name, for processes of others cannot be seen from here."""
    return f"thaw-weights-{socket.gethostname()}-{pid}"
