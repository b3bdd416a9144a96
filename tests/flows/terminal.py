"""A real terminal around a command."""

import os
import pty
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.flows.scratch import OUTSIDE

THAW = Path(sys.executable).with_name("thaw")
APART = ("CI", "NO_COLOR", "FORCE_COLOR", "TERM")


@dataclass(frozen=True)
class Shown:
    """out: what standard output, a pipe, got; shown: what the terminal did."""

    status: int
    out: str
    shown: str


def environment(more: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in APART and not OUTSIDE.match(name)}
    return kept | {"PATH": f"{THAW.parent}{os.pathsep}{os.environ['PATH']}", "TERM": "xterm-256color", **more}


def on_terminal(folder: Path, *arguments: str, typed: str = "", more: Mapping[str, str] | None = None) -> Shown:
    """Run `thaw` with a terminal for standard input and error, on which something was typed already."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [THAW, *arguments], cwd=folder, env=environment(more or {}), text=True,
        stdin=theirs, stderr=theirs, stdout=subprocess.PIPE,
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, typed.encode())
    shown = b""
    with suppress(OSError):  # once the other end is closed
        while chunk := os.read(ours, 4096):
            shown += chunk
    os.close(ours)
    out, _ = process.communicate(timeout=120)
    return Shown(process.returncode, out, shown.decode())
