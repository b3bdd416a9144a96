"""A small training run that kills itself, by a signal that nothing catches, at a named moment."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from components.config import Arm
from components.rollout import transformers_engine
from components.tracking.runs import connect
from components.training import checkpoint, loop, trainer
from tests.conftest import small_settings

# Where, in which function, and at which of its calls; checkpoints follow steps 2, 4 and 6.
MOMENTS: dict[str, tuple[Any, str, int]] = {
    "sampling": (transformers_engine._Batch, "_forward", 40),
    "backward": (trainer._Watch, "finite", 2),
    "checkpoint": (checkpoint.json, "dumps", 1),
    "model": (loop, "save_policy", 1),
}


def kill_at(moment: str) -> None:
    place, name, number = MOMENTS[moment]
    method: Callable[..., Any] = getattr(place, name)
    calls = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(*arguments, **options)

    setattr(place, name, counted)


def main(data: Path, base: Path, out: Path, moment: str) -> None:
    if moment != "never":
        kill_at(moment)
    settings = small_settings("train.steps=6", "train.micro_batch_tokens=64")
    loop.train(settings, Arm.parse("paft-q0.75"), 0, data=data, base=base, out=out, tracker=connect(out.parent))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), sys.argv[4])
