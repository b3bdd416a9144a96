"""How commands end when they are interrupted: in order, with a sentence on what was kept and which command goes on."""

import functools
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from components.job import own_command
from components.progress import say_last

Kept = Callable[..., tuple[str, str]]  # from a command's arguments: what was kept, and how the command goes on


def heed_signals() -> None:
    """Let a signal to end, or a terminal that closes, end the command in order: MLflow and Prefect are told.

    So does ctrl-C; a second one ends it at once, and what it has started ends with it.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


def keeps(kept: Kept) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a command, so that it says what it has kept when it is interrupted."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(*args: Any, **options: Any) -> Any:
            try:
                return command(*args, **options)
            except KeyboardInterrupt:
                what, how = kept(*args, **options)
                say_last(f"interrupted: {what}; `{own_command()}` {how}.")
                raise

        return run

    return decorate


def run_kept(out: Path, **_: Any) -> tuple[str, str]:
    """Of training one arm."""
    from components.training.checkpoint import find_state

    if (out / "train.json").is_file():
        return f"{out} holds the whole run", "ends it"
    if (state := find_state(out / "state")) is None:
        return f"{out} has no checkpoint yet", "begins anew"
    return f"{out} has kept all up to step {state.name.removeprefix('step-')}", "goes on from there"


def builds_kept(*_: Any, **__: Any) -> tuple[str, str]:
    """Of sweeps."""
    return "what is built is kept, and so are the checkpoints of training", "goes on from there"


def nothing_kept(*_: Any, **__: Any) -> tuple[str, str]:
    """Of what writes its result at the end."""
    return "no result was written", "begins anew"


def servers_kept(*_: Any, **__: Any) -> tuple[str, str]:
    """Of servers, which keep all they know on disk."""
    return "all that was started has ended, and what it has kept stays", "goes on with it"
