"""`thaw logs`: what a stage or a flow said, found by the name of its arm, stage, folder or run."""

import re
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from components.errors import UserError

POLL_SECONDS = 0.5
MOST = 5  # other logs that are named


def logs(
    name: Annotated[
        str | None,
        typer.Argument(help="An arm, a stage, a run's folder, a sweep's, or a flow run; the newest log by default."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows, until ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the last lines.")] = 20,
) -> None:
    """Show the log of a stage that a sweep runs or ran, or of the sweep itself: its last lines, without its path.

    [dim]thaw logs garl-q0.75            the newest log of this arm
    thaw logs sweep --follow        the sweep's own
    thaw logs train@garl-q1-0 --lines 200[/dim]
    """
    from components.progress import say
    from tasks.workspace import project_root

    newest, *others = find_logs(project_root(), name)
    also = f"; others: {', '.join(path.stem for path in others[:MOST])}" if others else ""
    say(f"{newest}{also}")
    for line in _lines(newest, lines, follow=follow):
        typer.echo(line, nl=False)


def find_logs(root: Path, name: str | None) -> list[Path]:
    """The logs that a name may mean, the one that was last written to first.

    Raises:
        UserError: there is none.
    """
    from components.job import JOBS
    from tasks.status import folders_of_jobs

    found = [file for folder in folders_of_jobs(root) for file in (folder / JOBS).glob("*.log")]
    chosen = [file for file in found if name is None or _means(name, file)]
    if not chosen:
        names = ", ".join(sorted({file.stem for file in found})) or "none yet: sweeps and flows write them"
        raise UserError(f"there is no log{'' if name is None else f' of {name}'}; there are {names}.")
    return sorted(chosen, key=lambda file: file.stat().st_mtime, reverse=True)


def _means(name: str, log: Path) -> bool:
    """Whether a name is that of a log's arm, stage, folder, sweep or flow run."""
    from components.job import file_name
    from components.names import as_folder

    build = log.parent.parent.parent
    if Path(name).is_dir() and file_name(Path(name), build) == log.stem:
        return True
    if re.search(rf"(^|-){re.escape(as_folder(name.replace('@', '-')))}(-|$)", log.stem):
        return True
    of_flow = log.stem.startswith("flow-")
    return of_flow and (build.name == Path(name).name or f"({name})" in log.read_text(encoding="utf-8"))


def _lines(log: Path, number: int, *, follow: bool) -> Iterator[str]:
    """The last lines of a log, and then those that come."""
    with log.open(encoding="utf-8", errors="replace") as file:
        yield from deque(file, maxlen=number)
        while follow:
            if line := file.readline():
                yield line
            else:
                time.sleep(POLL_SECONDS)
