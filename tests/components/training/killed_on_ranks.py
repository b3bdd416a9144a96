"""A small run on two processes that broadcast to a server and sample a step ahead; it loses the server, or one."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from components.config import Arm
from components.errors import TemporaryError
from components.rollout.engine import Rollout, Sampling
from components.rollout.vllm_server import VllmServerEngine
from components.tracking.runs import connect
from components.training.loop import train
from components.training.zero import end_ranks
from tests.conftest import small_settings

STALE = [
    "rollout.engine=vllm", "rollout.placement=server", "rollout.transfer=broadcast", "rollout.staleness=1",
    "train.importance_weights=truncated",
]  # fmt: skip


def train_to(out: Path, loses: Callable[[VllmServerEngine], None] | None = None, *, at_step: int = 0) -> str | None:
    """Train, and call `loses` in one of the steps that this call samples, from 1; returns the error that ends it."""
    generate, steps = VllmServerEngine.generate, iter(range(1, 100))

    def lost(engine: VllmServerEngine, prompts: Sequence[Sequence[int]], n: int, how: Sampling) -> list[list[Rollout]]:
        if engine.process is None:
            time.sleep(0.5)  # the first process must not renew the weights before the other one has sampled
        if loses is not None and not how.answers and next(steps) == at_step:  # in training, not in validation
            loses(engine)
        return generate(engine, prompts, n, how)

    settings = small_settings(*STALE, "train.max_mismatch=1.0e-4")
    inputs = {"data": out.parent / "data", "base": out.parent / "base", "tracker": connect(out.parent)}
    VllmServerEngine.generate = lost
    try:
        train(settings, Arm.parse("garl-q0.75"), 0, out=out, **inputs)
    except TemporaryError as error:
        return str(error)
    finally:
        VllmServerEngine.generate = generate
    return None


def kill_the_server(engine: VllmServerEngine) -> None:
    if engine.process is not None:  # in the first process
        for pid in engine.process.pids:
            with suppress(ProcessLookupError):  # the server's own processes may have followed it
                os.kill(pid, signal.SIGKILL)


def kill_the_first_process(engine: VllmServerEngine) -> None:
    if engine.process is not None:
        print("pids:", *engine.process.pids, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


def main(root: Path, doing: str) -> None:
    if doing == "killed":
        print("undisturbed:", train_to(root / "undisturbed"), flush=True)
        # While the third step is updated, behind the checkpoint of the second; and then there again.
        print("without the server:", train_to(root / "killed", kill_the_server, at_step=4), flush=True)
        print("without the other:", train_to(root / "killed", kill_the_first_process, at_step=1), flush=True)
    else:
        print("resumed:", train_to(root / "killed"), flush=True)
        end_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
