"""What commands print: with --json one JSON value on standard output and nothing else there; colour where wanted."""

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON value for programs; what else is said goes to standard error.")
]


@contextmanager
def aside(as_json: bool) -> Iterator[None]:
    """With --json: whatever is said meanwhile, by libraries and other processes too, goes to standard error."""
    if not as_json:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def say_in(colour: str, text: str) -> None:
    """A line on standard error; in that colour on a terminal, unless NO_COLOR is set."""
    plain = bool(os.environ.get("NO_COLOR"))
    typer.secho(text, fg=None if plain else colour, err=True, color=False if plain else None)


def print_json(value: Any) -> None:
    """A value of dataclasses, mappings, lists and plain values; what no JSON number can be (NaN, infinity) is null."""
    typer.echo(json.dumps(_plain(value), indent=1, allow_nan=False))


def read_json(path: Path) -> Any:
    """What a step has written."""
    return json.loads(path.read_text(encoding="utf-8"))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return None if isinstance(value, float) and not math.isfinite(value) else value
