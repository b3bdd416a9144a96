"""Choosing the engine that the settings name."""

import os
from pathlib import Path

from transformers import PreTrainedModel

from components.config import Settings
from components.errors import UserError
from components.rollout.engine import Markers, RolloutEngine
from components.rollout.transformers_engine import TransformersEngine


def open_engine(settings: Settings, policy: PreTrainedModel, folder: Path, markers: Markers) -> RolloutEngine:
    """The engine of rollout.engine for a policy that was loaded from `folder`; use it as a context manager.

    The Transformers engine samples from `policy` itself; vLLM loads the folder and takes new weights by load_weights.

    Raises:
        UserError: the engine cannot be started.
    """
    rollout = settings.rollout
    if rollout.engine == "transformers":
        return TransformersEngine(
            policy, markers, batch_rollouts=rollout.batch_rollouts, timeout_seconds=rollout.timeout_seconds
        )
    if rollout.placement in ("colocated", "sleeping"):
        from components.rollout.vllm_engine import VllmEngine

        return VllmEngine(
            folder,
            markers,
            dtype=settings.model.dtype,
            timeout_seconds=rollout.timeout_seconds,
            sleeps=rollout.placement == "sleeping",
        )
    return _open_server(settings, folder, markers)


def _open_server(settings: Settings, folder: Path, markers: Markers) -> RolloutEngine:
    from components.rollout.server_process import ServerProcess
    from components.rollout.vllm_server import VllmServerEngine

    rollout = settings.rollout
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"rollout.placement = {rollout.placement} serves one training process; with several,"
            " set rollout.placement = colocated."
        )
    if rollout.placement == "server":
        server = ServerProcess(folder, dtype=settings.model.dtype, options=rollout.server_options)
    else:
        server = rollout.placement
    return VllmServerEngine(
        server,
        folder,
        markers,
        timeout_seconds=rollout.timeout_seconds,
        weights_folder=None if rollout.weights_folder is None else Path(rollout.weights_folder),
    )
