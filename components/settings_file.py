"""Settings files as they are written: YAML, `extends:`, `--set`, and the sentence that says what is wrong with one."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from components.addresses import shown
from components.errors import UserError

LARGEST_FILE = 1 << 20  # characters of a settings file
SHOWN = 200  # characters of a wrong value
NO_TEXT = re.compile("[\0\ud800-\udfff]")


def read_settings(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A settings file with those that it extends, changed by overrides ("name=value"); nothing is checked yet.

    Raises:
        UserError: a file is missing or no YAML, or an override names no setting or holds no value.
    """
    raw = _read(path)
    for override in overrides:
        _override(raw, override)
    return raw


def read_yaml(path: Path) -> dict[str, Any]:
    """A settings file as it stands.

    Raises:
        UserError: it is missing or cannot be read, or holds no settings.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LARGEST_FILE + 1)
        raw = _parsed(text)
    except FileNotFoundError:
        raise UserError(f"no settings file {path}; run from the project's folder or name one with --params.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" (line {mark.line + 1}: {getattr(error, 'problem', '')})"
        raise UserError(f"{path} is no valid YAML{where}; correct it.") from None
    except (OSError, ValueError) as error:  # ValueError: no file can have such a name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{_short(str(path))!r} cannot be read: {reason}; name a settings file.") from None
    if len(text) > LARGEST_FILE or not isinstance(raw, dict):
        raise UserError(f"{path} holds no settings; start from the project's params.yaml.")
    return raw


class _Loader(yaml.SafeLoader):
    """Plain YAML without aliases: with them a few lines can mean gigabytes, and a list can hold itself."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases are not taken, write the value out", problem_mark=mark)
        return super().compose_node(parent, index)


def _parsed(text: str) -> Any:
    """What a YAML text says.

    Raises:
        yaml.YAMLError: it says nothing.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise
    except Exception as error:  # six kinds, of values that are not what they look like: 2024-13-45, 0x_, !!bool x
        raise yaml.YAMLError(str(error)) from None


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A settings file with those that it extends."""
    if seen and not os.path.lexists(path):
        raise UserError(f"{seen[-1]} extends {_short(str(path))}, which does not exist; correct the line.")
    raw = read_yaml(path)
    if (other := raw.pop("extends", None)) is None:
        return raw
    if not isinstance(other, str) or NO_TEXT.search(other):
        raise UserError(f"{path} extends {_short(str(other))!r}, which is no file's name; correct the line.")
    file = path.parent / other
    if os.path.realpath(file) in map(os.path.realpath, (*seen, path)):
        raise UserError(f"{path} extends {file}, which extends it in turn; one of them must stand alone.")
    return _merged(_read(file, (*seen, path)), raw)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Settings of which those `above` win, section by section."""
    both = {
        name: _merged(below[name], above[name])
        for name in below.keys() & above.keys()
        if isinstance(below[name], dict) and isinstance(above[name], dict)
    }
    return below | above | both


def _override(raw: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    *sections, last = name.strip().split(".")
    if not equals:
        raise UserError(f"--set {_short(override)}: write name=value, as in --set train.steps=20.")
    target: Any = raw
    for section in sections:
        target = target.get(section) if isinstance(target, dict) else None
    if not isinstance(target, dict) or last not in target:
        raise UserError(f"--set {_short(override)}: there is no setting '{_short(name)}'; params.yaml lists them all.")
    try:
        target[last] = _parsed(text)
    except yaml.YAMLError:
        raise UserError(f"--set {_short(override)}: '{_short(text)}' is no valid YAML value.") from None


def first_sentence(error: ValidationError, path: Path, overrides: Sequence[str]) -> str:
    """What is wrong with settings: the first thing that pydantic found, the file and what to do about it."""
    first = error.errors()[0]
    name = _short(".".join(str(part) for part in first["loc"]))
    where = f"{path} with --set {' --set '.join(map(_short, overrides))}" if overrides else str(path)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"{where}: there is no setting '{name}'; remove it or correct its spelling."
    if first["type"] == "missing":
        return f"{where}: the setting '{name}' is missing; the project's params.yaml shows it."
    if first["type"] == "value_error":
        return f"{where}: {message}"
    return f"{where}: {name} = {_short(repr(first['input']))}: {message}."


def _short(text: str) -> str:
    """As much of what a user wrote as a sentence can hold, without passwords."""
    text = shown(text)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
