"""`thaw gc`: what nothing needs any more, and its removal."""

import os
from pathlib import Path
from typing import Annotated

import typer

from components.errors import UserError
from flows.output import AsJson, aside, print_json


def gc(
    yes: Annotated[bool, typer.Option("--yes", help="Remove all of it, for ever.")] = False, as_json: AsJson = False
) -> None:
    """List what takes room on this disk and nothing needs any more, with the reason; with --yes, remove it.

    That is what MLflow keeps of deleted runs and versions, objects of DVC's cache that no dvc.lock and no .dvc file
    names, here or in a commit, what killed runs left half-written, and builds of experiments that are gone. What a
    registered version or a running job uses stays, and so does whatever cannot be proven to be unused.
    """
    from rich.console import Console
    from rich.markup import escape

    from components.tracking.store import NothingYet
    from tasks.evaluation import registry
    from tasks.garbage import freed, garbage, remove, size
    from tasks.workspace import project_root

    root = project_root()
    if not (root / ".dvc").is_dir():
        raise UserError(f"{root} is no project of DVC; `thaw gc` runs inside a clone of Thaw.")
    console = Console(soft_wrap=True, highlight=False, stderr=as_json)
    try:
        store = registry().store
    except NothingYet as nothing:
        console.print(str(nothing), markup=False)
        store = None
    with aside(as_json), garbage(root, store) as found:
        rows = [{"bytes": size(unused.paths), "paths": unused.paths, "why": unused.why} for unused in found]
        for row in rows:
            told = f"{_bytes(row['bytes']):>8}  {_place(row['paths'], root)}"
            console.print(f"{escape(told)}  [dim]{escape(row['why'])}[/]")
        everything = [path for unused in found for path in unused.paths]
        room = freed(everything)
        shared = size(everything) - room
        if yes:
            for unused in found:
                remove(unused)
    if as_json:
        print_json({"unused": rows, "freed": room, "named_elsewhere": shared, "removed": yes})
        return
    rest = f"; {_bytes(shared)} more have a name elsewhere too, and stay" if shared else ""
    if not found:
        console.print("nothing here is unused")
    elif yes:
        console.print(f"removed: {_bytes(room)} are free again{rest}")
    else:
        console.print(f"nothing was removed; `thaw gc --yes` frees {_bytes(room)}{rest}")


def _place(paths: list[Path], root: Path) -> str:
    place = Path(os.path.commonpath(paths))
    shown = str(place.relative_to(root) if place.is_relative_to(root) else place)
    return shown if len(paths) == 1 else f"{shown} ({len(paths)} files)"


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
