"""Choosing the engine that the settings name."""

from pathlib import Path

from transformers import PreTrainedModel

from components.config import Settings
from components.rollout.engine import Markers, RolloutEngine
from components.rollout.transformers_engine import TransformersEngine


def open_engine(settings: Settings, policy: PreTrainedModel, folder: Path, markers: Markers) -> RolloutEngine:
    """The engine of rollout.engine for a policy that was loaded from `folder`; use it as a context manager.

    The Transformers engine samples from `policy` itself; vLLM loads the folder and takes new weights by load_weights.
    """
    if settings.rollout.engine == "vllm":
        from components.rollout.vllm_engine import VllmEngine

        return VllmEngine(folder, markers, dtype=settings.model.dtype, timeout_seconds=settings.rollout.timeout_seconds)
    return TransformersEngine(policy, markers, batch_rollouts=settings.rollout.batch_rollouts)
