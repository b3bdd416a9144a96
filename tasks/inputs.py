"""The data and the base model that a step needs: those it was given, or made now where nobody made them yet."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.config import Settings
from components.errors import UserError
from components.links import check_model
from components.progress import say

if TYPE_CHECKING:
    from components.data.example import Example
    from components.policy.tokens import TokenCounter

MADE_WITH = "settings.json"  # in every made folder: the settings that decide what is in it


def make_data(settings: Settings, out: Path) -> dict[str, Any]:
    """Prepare the task's splits in `out`; returns the report of what was loaded and what was left out."""
    from components.data.prepare import prepare

    report = prepare(settings.task, out, _tokens(settings), settings.rollout.max_new_tokens)
    _sign(out, _data_settings(settings))
    return report


def make_base(settings: Settings, out: Path) -> None:
    """Write the base model to `out`."""
    from components.policy.base import make_base as make

    _check_model(settings.model.name)
    make(settings, out)
    _sign(out, _base_settings(settings))


def find_data(settings: Settings, given: Path | None, build: Path, near: Path) -> Path:
    """The prepared data: the folder given, build/data where it fits the settings, else made in near/data.

    Raises:
        UserError: the folder given holds no prepared data, or that of other settings.
    """
    return _find(given, build / "data", near / "data", _data_settings(settings), lambda out: make_data(settings, out))


def find_examples(settings: Settings, given: Path | None, split: str, build: Path, near: Path) -> "list[Example]":
    """What to evaluate on: all questions of a raw file of the task, or a split of prepared data.

    Of a folder that is given, task and start must fit the settings; which files it was prepared from may differ.

    Raises:
        UserError: the file or folder given cannot be used, or lacks the split.
    """
    from components.data.prepare import load_file
    from components.data.split_files import example, load_split

    if given is not None and given.is_file():
        loaded = load_file(given, settings.task, _tokens(settings), settings.rollout.max_new_tokens)
        left_out = "".join(f", {count} left out: {reason}" for reason, count in sorted(loaded.skipped.items()))
        say(f"{given}: {len(loaded.examples)} questions{left_out}")
        return loaded.examples
    wanted = _data_settings(settings)
    if given is not None:
        wanted = {name: wanted[name] for name in ("task.name", "task.start")}
    make = partial(make_data, settings)
    return [example(row) for row in load_split(_find(given, build / "data", near / "data", wanted, make), split)]


def find_base(settings: Settings, given: Path | None, build: Path, near: Path) -> Path:
    """The base model: the folder given, build/base where it fits the settings, else made in near/base."""
    if given is not None:
        if not (given / "config.json").is_file():
            raise UserError(f"--base {given} holds no model; `thaw base --out {given}` makes it.")
        check_model(given)
        return given
    return _find(None, build / "base", near / "base", _base_settings(settings), lambda out: make_base(settings, out))


def _find(given: Path | None, built: Path, near: Path, wanted: dict[str, Any], make: Callable[[Path], object]) -> Path:
    if given is not None:
        found = _signature(given)
        if found is None:
            raise UserError(f"--data {given} holds no prepared data; `thaw prepare --out {given}` makes it.")
        if different := ", ".join(sorted(name for name in wanted if found.get(name) != wanted[name])):
            raise UserError(f"--data {given} was prepared with other settings ({different}); prepare it again.")
        return given
    for folder in (built, near):
        if _signature(folder) == wanted:
            return folder
    make(near)
    return near


def _tokens(settings: Settings) -> "TokenCounter":
    from components.policy.tokens import TokenCounter

    _check_model(settings.model.name)
    return TokenCounter(settings.model, chat=settings.task.start == "warm")


def _check_model(name: str) -> None:
    """Of a folder, whoever made it; what comes from the hub is checked by its library."""
    if Path(name).is_dir():
        check_model(Path(name))


def _data_settings(settings: Settings) -> dict[str, Any]:
    found = {f"task.{name}": value for name, value in settings.task.model_dump(mode="json").items()}
    # Whose tokens a prompt is measured in, and what it must leave free.
    found |= {f"model.{name}": getattr(settings.model, name) for name in ("name", "revision", "answer_prefix")}
    return found | {"rollout.max_new_tokens": settings.rollout.max_new_tokens}


def _base_settings(settings: Settings) -> dict[str, Any]:
    found = {f"model.{name}": value for name, value in settings.model.model_dump(mode="json").items()}
    if settings.model.name == "embedded":
        taught = settings.teaching.model_dump(mode="json") | {"start": settings.task.start}
        found |= {f"teaching.{name}": value for name, value in taught.items()}
    return found


def _sign(folder: Path, made_with: dict[str, Any]) -> None:
    (folder / MADE_WITH).write_text(json.dumps(made_with, indent=1) + "\n", encoding="utf-8")


def _signature(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / MADE_WITH).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
