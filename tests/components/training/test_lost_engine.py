"""A run that samples from `vllm serve` and loses it in the middle of a step."""

from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from components.config import Arm
from components.errors import TemporaryError
from components.policy.base import make_base
from components.rollout.engine import Sampling
from components.rollout.vllm_server import VllmServerEngine
from components.tracking.runs import Tracker
from components.training.loop import train
from tasks.inputs import make_data
from tests.conftest import small_settings


@pytest.mark.slow
def test_a_killed_engine_ends_the_run_and_resume_gives_the_same_weights(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its engine process is killed in the third step, behind the checkpoint of the second."""
    settings = small_settings("rollout.engine=vllm", "rollout.placement=server", "rollout.timeout_seconds=60")
    data, base = tmp_path / "data", tmp_path / "base"
    make_data(settings, data)
    make_base(settings, base)

    def run(out: str) -> bytes:
        train(settings, Arm.parse("garl-q0.75"), 0, data=data, base=base, out=tmp_path / out, tracker=tracker)
        return (tmp_path / out / "final" / "model.safetensors").read_bytes()

    undisturbed = run("undisturbed")
    generate, calls, pids = VllmServerEngine.generate, iter(range(100)), list[int]()

    def killed_at_the_third_step(engine: VllmServerEngine, prompts: Sequence[Sequence[int]], n: int, how: Sampling):
        if next(calls) == 3:  # two steps, a validation, and this
            assert engine.process is not None
            pids.extend(engine.process.pids)
            # The process that computes has most of the memory.
            max(map(psutil.Process, pids[1:]), key=lambda process: process.memory_info().rss).kill()
        return generate(engine, prompts, n, how)

    with monkeypatch.context() as patched:
        patched.setattr(VllmServerEngine, "generate", killed_at_the_third_step)
        with pytest.raises(TemporaryError, match=r"the vLLM server at http://127\.0\.0\.1:"):
            run("killed")
    assert len(pids) > 1
    assert not any(map(psutil.pid_exists, pids))
    assert run("killed") == undisturbed
