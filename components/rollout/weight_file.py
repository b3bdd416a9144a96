"""Weights through a file that trainer and servers both see: any disk will do."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
from safetensors.torch import save_file
from torch import Tensor

from components.policy.lora import write_config
from components.rollout.server_client import ServerClient

SHARED_MEMORY = Path("/dev/shm")


class WeightFile:
    """All of the policy's weights; servers need no option for it.

    folder: seen by the servers under the same path; None takes this machine's shared memory.
    """

    def __init__(self, servers: Sequence[ServerClient], folder: Path | None) -> None:
        self.servers = servers
        self._parent = folder or (SHARED_MEMORY if SHARED_MEMORY.is_dir() else None)
        _remove_left_over(self._parent)

    def send(self, weights: Iterable[tuple[str, Tensor]], version: str) -> set[str]:
        """Let every server load the weights, known by `version` from here on; returns their names.

        Raises:
            UserError: a server cannot read them.
            TemporaryError: the time is up, or a server is gone.
        """
        # Tied weights are one tensor under two names, which safetensors refuses: each gets its own.
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights}
        prefix = f"{_prefix(os.getpid())}-"
        with (
            tempfile.TemporaryDirectory(prefix=prefix, dir=self._parent) as folder,
            ThreadPoolExecutor(len(self.servers)) as threads,
        ):
            self._write(tensors, Path(folder))
            list(threads.map(lambda server: self._load(server, Path(folder), version), self.servers))
        return set(tensors)

    def close(self) -> None:
        """Nothing is left behind."""

    def _write(self, tensors: dict[str, Tensor], folder: Path) -> None:
        save_file(tensors, folder / "model.safetensors")

    def _load(self, server: ServerClient, folder: Path, version: str) -> None:
        server.load(folder, version)


class AdapterFile(WeightFile):
    """The adapters alone, which is little to write and to read; servers keep the base model as it is.

    rank: of the adapters.
    """

    def __init__(self, servers: Sequence[ServerClient], folder: Path | None, rank: int) -> None:
        super().__init__(servers, folder)
        self._rank, self._before = rank, None

    def send(self, weights: Iterable[tuple[str, Tensor]], version: str) -> set[str]:
        """As for all weights."""
        sent = super().send(weights, version)
        self._before = version
        return sent

    def _write(self, tensors: dict[str, Tensor], folder: Path) -> None:
        save_file(tensors, folder / "adapter_model.safetensors")
        write_config(self._rank, folder)

    def _load(self, server: ServerClient, folder: Path, version: str) -> None:
        server.load_adapters(folder, version, self._before)


def _remove_left_over(parent: Path | None) -> None:
    """Remove the weights of trainers that were killed: nobody else frees their shared memory."""
    for folder in (parent or Path(tempfile.gettempdir())).glob(_prefix("*")):
        pid, *rest = folder.name.removeprefix(_prefix("")).split("-")
        if len(rest) == 1 and not psutil.pid_exists(int(pid)):  # `host-2` is no process of `host`
            shutil.rmtree(folder, ignore_errors=True)


def _prefix(pid: int | str) -> str:
    """Of folders for weights; with the machine's name, for processes of others cannot be seen from here."""
    return f"thaw-weights-{socket.gethostname()}-{pid}"
