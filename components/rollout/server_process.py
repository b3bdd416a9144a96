"""`vllm serve` as a child process that never outlives us."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import psutil
import torch

from components.addresses import free_port
from components.errors import UserError
from components.rollout.key import KEY

START_SECONDS = 1800  # a large model is loaded and its graphs are captured
STOP_SECONDS = 10
# As a traceback ends; that the engine is dead is what all requests are told, and says nothing.
ERROR = re.compile(r"\b(?!EngineDeadError)\w*Error: .+")


class ServerProcess:
    """A server for one run; it is ready when the constructor returns."""

    def __init__(
        self, folder: Path, *, dtype: str, options: Sequence[str] = (), host: str = "127.0.0.1", key: str | None = None
    ) -> None:
        """folder: the Hugging Face folder of the policy. options: more of `vllm serve`, as --data-parallel-size=2.

        host: the address of this machine under which it listens. key: what everybody has to bring who asks it.

        Raises:
            UserError: the server does not start; its last words are told.
        """
        port = free_port(host)
        self.key = key
        self.url = f"http://{host}:{port}"
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        arguments = [
            str(folder), f"--host={host}", f"--port={port}", f"--dtype={dtype}", "--tokens-only",
            "--logprobs-mode=raw_logprobs", "--generation-config=vllm", "--max-model-len=-1", *_device_options(),
            *(["--middleware=components.rollout.key.RequireKey"] if key else []), *options,
        ]  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-m", "components.rollout.serve", *arguments],
            env={**_device_environment(), **_own_environment(), **_routes(options), KEY: key or ""},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self._family: list[psutil.Process] = []
        try:
            self._wait()
        except BaseException:
            self.close()
            raise
        self._family = psutil.Process(self._process.pid).children(recursive=True)

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise self._not_started(f"ended with code {self._process.returncode}")
            try:
                if httpx.get(f"{self.url}/health", timeout=5, trust_env=False).is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.2)
        raise self._not_started(f"was not ready after {START_SECONDS} seconds")

    def _not_started(self, how: str) -> UserError:
        return UserError(f"vllm serve {how}: {self.last_words() or 'it said nothing; is vLLM installed?'}")

    @property
    def pids(self) -> list[int]:
        """The server first, then its own processes, of which one runs the engine."""
        return [self._process.pid, *(process.pid for process in self._family)]

    def close(self) -> None:
        """End the server and all its processes, also those it can no longer end itself."""
        family = {*self._family}
        if self._process.poll() is None:
            family.update(psutil.Process(self._process.pid).children(recursive=True))
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        left = psutil.wait_procs(family, timeout=1)[1]
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=STOP_SECONDS)
        self._log.close()

    def last_words(self) -> str | None:
        """The last error in its log that has a cause of its own, if there is one."""
        self._log.seek(0)
        errors = ERROR.findall(self._log.read())
        return errors[-1][:300] if errors else None


def _own_environment() -> dict[str, str]:
    """Our environment, but for who we are among the processes that train: vLLM has processes of its own."""
    ours = re.compile("RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|MASTER_ADDR|MASTER_PORT|TORCHELASTIC_.*")
    return {name: value for name, value in os.environ.items() if not ours.fullmatch(name)}


def _routes(options: Sequence[str]) -> dict[str, str]:
    """What opens the routes by which weights and adapters are renewed."""
    adapters = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"} if "--enable-lora" in options else {}
    return {"VLLM_SERVER_DEV_MODE": "1"} | adapters


def _device_options() -> list[str]:
    return (
        ["--gpu-memory-utilization=0.4"]
        if torch.cuda.is_available()
        else ["--enforce-eager", "--no-enable-chunked-prefill"]
    )


def _device_environment() -> dict[str, str]:
    """What the user's own environment may override."""
    common = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    if torch.cuda.is_available():
        return common
    threads = str(torch.get_num_threads())
    return common | {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "PASSIVE",
        "TORCHDYNAMO_DISABLE": "1",  # it would compile for half a minute
    }
