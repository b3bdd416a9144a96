"""Choosing the engine that the settings name."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel

from components.config import RolloutSettings, Settings
from components.policy.markers import Markers
from components.policy.model import device, load_model
from components.rollout.engine import Alone, Peers, RolloutEngine
from components.rollout.transformers_engine import TransformersEngine

# Engines that sample from a model of this process, by rollout.engine; the others load the model's folder themselves.
IN_PROCESS: dict[str, Callable[[PreTrainedModel, Markers, RolloutSettings], RolloutEngine]] = {
    "transformers": lambda model, markers, rollout: TransformersEngine(
        model, markers, batch_rollouts=rollout.batch_rollouts, timeout_seconds=rollout.timeout_seconds
    ),
}


def sampled_model(settings: Settings, folder: Path, own: PreTrainedModel | None = None) -> PreTrainedModel | None:
    """What an engine of this process samples from: a whole model of the caller's own, or the one in the folder.

    None for engines that load the folder themselves.
    """
    if settings.rollout.engine not in IN_PROCESS:
        return None
    return own or load_model(folder, dtype=settings.model.dtype).to(device())


def open_engine(
    settings: Settings, policy: PreTrainedModel | None, folder: Path, markers: Markers, peers: Peers | None = None
) -> RolloutEngine:
    """The engine of rollout.engine for a policy that was loaded from `folder`; use it as a context manager.

    Engines of this process sample from `policy` itself; vLLM needs none: it loads the folder and takes new weights by
    load_weights.

    peers: the processes that open one at the same time, where there are several; servers are shared by all of them.

    Raises:
        UserError: the engine cannot be started.
    """
    rollout = settings.rollout
    if rollout.engine in IN_PROCESS:
        assert policy is not None
        return IN_PROCESS[rollout.engine](policy, markers, rollout)
    if not rollout.served:
        from components.rollout.vllm_engine import VllmEngine

        return VllmEngine(
            folder,
            markers,
            dtype=settings.model.dtype,
            timeout_seconds=rollout.timeout_seconds,
            sleeps=rollout.placement == "sleeping",
        )
    return _open_server(settings, folder, markers, peers or Alone())


def _open_server(settings: Settings, folder: Path, markers: Markers, peers: Peers) -> RolloutEngine:
    from components.rollout.broadcast import backend
    from components.rollout.server_process import ServerProcess
    from components.rollout.vllm_server import VllmServerEngine

    rollout, process, urls = settings.rollout, None, settings.rollout.urls
    if not urls:
        if peers.first:
            # Where the processes meet is where all of them reach the first one's host.
            host = os.environ["MASTER_ADDR"] if peers.size > 1 else "127.0.0.1"
            taking = {
                "file": [],
                "broadcast": [f'--weight-transfer-config={{"backend": "{backend()}"}}'],
                "adapters": ["--enable-lora", f"--max-lora-rank={_room(settings.train.lora_rank)}", "--max-loras=1"],
            }
            options = [*taking[rollout.transfer], *rollout.server_options]
            key = secrets.token_hex(24)
            process = ServerProcess(folder, dtype=settings.model.dtype, options=options, host=host, key=key)
            urls = [process.url]
        urls = peers.share(urls)
    return VllmServerEngine(
        urls,
        folder,
        markers,
        timeout_seconds=rollout.timeout_seconds,
        weights_folder=None if rollout.weights_folder is None else Path(rollout.weights_folder),
        transfer=rollout.transfer,
        lora_rank=settings.train.lora_rank,
        process=process,
        peers=peers,
    )


def _room(rank: int) -> int:
    """The least rank that vLLM makes room for and that is no less than this one."""
    return next(size for size in (1, 8, 16, 32, 64, 128, 256, 320, 512) if size >= rank)
