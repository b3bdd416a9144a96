"""Weights from the trainer to every process of every vLLM server, by vLLM's own transfer engines: nothing is written.

One group joins the first training process, its rank 0, with all processes of all servers. A round opens an update on
every server, names some weights to them and broadcasts those, until all have gone; a server takes each as it comes, so
that neither side holds a second model. Between GPUs it is vLLM's engine `nccl`; on CPUs it is `gloo`, which lies in
`gloo_receiver` and is registered with vLLM by an entry point of this package.

Source: https://docs.vllm.ai/en/latest/training/weight_transfer/
"""

import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from itertools import accumulate
from typing import Any, Protocol
from urllib.parse import urlsplit

import torch
from torch import Tensor
from torch._C._distributed_c10d import TCPStore
from torch.distributed import ProcessGroupGloo

from components.addresses import free_port
from components.errors import TemporaryError, UserError
from components.rollout.server_client import ServerClient

CHUNK_BYTES = 1 << 28  # of weights that are named to the servers at once
Named = list[tuple[str, Tensor]]


def backend() -> str:
    """vLLM's name for the engine that suits this machine; servers are started with it."""
    return "nccl" if torch.cuda.is_available() else "gloo"


def register() -> None:
    """Tell vLLM of `gloo`; vLLM calls it in each of its processes."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    WeightTransferEngineFactory.register_engine("gloo", "components.rollout.gloo_receiver", "GlooReceiver")


class Group(Protocol):
    """The processes that a weight goes to at once: the trainer and those of all servers."""

    def send(self, weight: Tensor) -> None:
        """Give one weight to all others, who must be about to take it."""
        ...

    def close(self) -> None:
        """Leave the group; nothing can be sent any more."""
        ...


class Broadcast:
    """The way to all servers; they must have been started with --weight-transfer-config of the same `backend`.

    timeout_seconds: of each call to a server, and of each weight.

    Raises:
        UserError: a server was started without it.
        TemporaryError: a server is gone, or does not come to the meeting.
    """

    def __init__(self, servers: Sequence[ServerClient], *, timeout_seconds: float) -> None:
        self.servers, self.timeout_seconds = servers, timeout_seconds
        self._threads = ThreadPoolExecutor(len(servers), "broadcast")
        firsts = list(accumulate((server.processes() for server in servers), initial=1))
        opened = _NcclGroup if backend() == "nccl" else _GlooGroup
        self._group: Group = opened(self, _address_towards(servers[0].url), firsts)

    def send(self, weights: Iterable[tuple[str, Tensor]], version: str) -> set[str]:
        """Let every server load the weights, known by `version` from here on; returns their names."""
        sent: set[str] = set()
        self.tell("start_weight_update")
        for chunk in _chunks(weights):
            listening = self.ask("update_weights", [{"update_info": _described(chunk)}] * len(self.servers))
            try:
                for _, weight in chunk:
                    self._group.send(weight)
            except RuntimeError as error:
                wait_for(listening)  # a server's own words say more
                raise TemporaryError(
                    f"weights did not reach the vLLM servers ({str(error).splitlines()[0]}): one of them is gone; start"
                    " it anew and resume from the last checkpoint."
                ) from None
            wait_for(listening)
            sent.update(name for name, _ in chunk)
        self.tell("finish_weight_update", weight_version=version)
        for server in self.servers:
            server.forget_prefixes()
        return sent

    def ask(self, path: str, bodies: Sequence[dict[str, Any]]) -> list[Future[None]]:
        """Begin to tell each server its own."""
        return [
            self._threads.submit(server.transfer, path, body) for server, body in zip(self.servers, bodies, strict=True)
        ]

    def invite(self, there: dict[str, Any], firsts: Sequence[int]) -> list[Future[None]]:
        """Begin to let the processes of each server join a group, the first one by the rank that firsts has for it."""
        infos = [{"init_info": there | {"rank_offset": first}} for first in firsts[:-1]]
        return self.ask("init_weight_transfer_engine", infos)

    def tell(self, path: str, **body: Any) -> None:
        """Ask all servers for the same thing, and wait until all have done it."""
        wait_for(self.ask(path, [body] * len(self.servers)))

    def close(self) -> None:
        """Leave the servers, for another run to join; those that are gone already have nothing to leave."""
        with suppress(UserError, TemporaryError):
            self.tell("shutdown_weight_transfer_engine")
        self._group.close()
        self._threads.shutdown(wait=False)


class _GlooGroup:
    """firsts: the rank of each server's first process, and of the one that would come next."""

    def __init__(self, way: Broadcast, address: str, firsts: Sequence[int]) -> None:
        world, patience = firsts[-1], timedelta(seconds=way.timeout_seconds)
        self._store = TCPStore(address, 0, world, is_master=True, timeout=patience, wait_for_workers=False)
        there = {"master_address": address, "master_port": self._store.port, "world_size": world}
        joining = way.invite(there, firsts)
        deadline = time.monotonic() + way.timeout_seconds
        while not self._store.check([here(rank) for rank in range(1, world)]):
            wait_for(future for future in joining if future.done())
            if time.monotonic() > deadline:
                raise TemporaryError(
                    f"the vLLM servers did not come to {address}:{self._store.port} for weights within"
                    f" rollout.timeout_seconds = {way.timeout_seconds:g}; can they reach that address?"
                )
            time.sleep(0.01)
        self._group = ProcessGroupGloo(self._store, 0, world, patience)
        wait_for(joining)

    def send(self, weight: Tensor) -> None:
        self._group.broadcast(weight, 0).wait()

    def close(self) -> None:
        del self._group, self._store


class _NcclGroup:
    def __init__(self, way: Broadcast, address: str, firsts: Sequence[int]) -> None:
        from vllm.distributed.weight_transfer.nccl_common import trainer_init

        there = {"master_address": address, "master_port": free_port(address), "world_size": firsts[-1]}
        joining = way.invite(there, firsts)
        self._group = trainer_init(there)
        wait_for(joining)

    def send(self, weight: Tensor) -> None:
        self._group.broadcast(weight, src=0, stream=torch.cuda.current_stream())

    def close(self) -> None:
        self._group.destroy()


def here(rank: int) -> str:
    """What the store of a gloo group has once this rank has come."""
    return f"here-{rank}"


def wait_for(futures: Iterable[Future[None]]) -> None:
    """Wait for all of them; what one of them raised is raised."""
    for future in futures:
        future.result()


def _chunks(weights: Iterable[tuple[str, Tensor]]) -> Iterator[Named]:
    """Weights as they are to be sent, some at a time; each is a copy, for the next one may take its place."""
    chunk: Named = []
    for name, weight in weights:
        chunk.append((name, weight.detach().clone(memory_format=torch.contiguous_format)))
        if sum(weight.nbytes for _, weight in chunk) >= CHUNK_BYTES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _described(chunk: Named) -> dict[str, list[Any]]:
    return {
        "names": [name for name, _ in chunk],
        "dtype_names": [str(weight.dtype).removeprefix("torch.") for _, weight in chunk],
        "shapes": [list(weight.shape) for _, weight in chunk],
    }


def _address_towards(url: str) -> str:
    """This machine's address as a server sees it."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=60) as connection:
        return connection.getsockname()[0]
