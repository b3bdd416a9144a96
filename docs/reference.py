"""The pages that the code writes: every setting from its type, every command from the parser that reads it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
import yaml
from rich.text import Text

from components.errors import STATUSES
from components.schema import settings_schema
from components.settings_file import read_yaml
from flows.cli import app

PARAMS = Path(__file__).parent.parent / "params.yaml"
LIMITS = {"minimum": "from {}", "exclusiveMinimum": "above {}", "maximum": "up to {}", "exclusiveMaximum": "below {}"}
NO_LIMIT = 2**63  # of whole numbers, which nobody needs to be told
KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "text",
    "null": "null",
}
ASIDE = re.compile(r"(?<=\S) {2,}(?=\S)")  # between an example and what it does
EXAMPLES = re.compile(r"\[dim\](.*?)\[/dim\]", re.DOTALL)


def settings() -> str:
    """params.yaml, section by section: each setting's meaning, when to change it, what it may be, its default."""
    schema = settings_schema(read_yaml(PARAMS))
    plain: dict[str, Any] = {}
    parts = []
    for name, facts in schema["properties"].items():
        if "$ref" in facts:
            section = schema["$defs"][facts["$ref"].rpartition("/")[2]]
            parts += [f"## {name}\n", f"{facts['description']}\n", _entries(f"{name}.", section["properties"])]
        else:
            plain[name] = facts
    return "\n".join(["## Arms, seeds and sources\n", _entries("", plain), *parts])


def commands() -> str:
    """Every command as the parser knows it: what it does, its arguments and options, its examples."""
    return "\n".join(_command(name, command) for name, command in walk("thaw", typer.main.get_command(app)))


def statuses() -> str:
    """The exit statuses of every command."""
    rows = [f"| {status} | {meaning} |" for status, meaning in STATUSES.items()]
    return "\n".join(["| status | meaning |", "|---|---|", *rows])


def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """The commands that do something, by their whole names."""
    if below := getattr(command, "commands", None):
        for word, one in below.items():
            yield from walk(f"{name} {word}", one)
    else:
        yield name, command


def _entries(prefix: str, properties: dict[str, Any]) -> str:
    """A definition list, an entry a setting."""
    return "\n".join(
        f"`{prefix}{name}`\n: {_sentence(facts['description'])}\n\n  {_sentence(_allowed(facts))}{_facts(facts)}\n"
        for name, facts in properties.items()
    )


def _facts(facts: dict[str, Any]) -> str:
    unit = f" Unit: {facts['unit']}." if "unit" in facts else ""
    default = f" Default: `{written(facts['default'])}`." if "default" in facts else ""
    return unit + default


def written(value: Any) -> str:
    """A default as params.yaml would have it."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _allowed(facts: dict[str, Any]) -> str:
    """In words, what values a setting takes."""
    if "anyOf" in facts:
        return " or ".join(map(_allowed, facts["anyOf"]))
    if "enum" in facts:
        return " or ".join(f"`{value}`" for value in facts["enum"])
    if facts["type"] == "array":
        return "a list of texts" if facts["items"]["type"] == "string" else "a list of whole numbers"
    if facts["type"] == "object":
        return "a mapping"
    bounds = [
        said.format(f"{facts[name]:g}") for name, said in LIMITS.items() if name in facts and facts[name] != NO_LIMIT
    ]
    return " ".join([KINDS.get(facts["type"], facts["type"]), *bounds])


def _sentence(text: str) -> str:
    text = _ended(text)
    return text[:1].upper() + text[1:]


def _ended(text: str) -> str:
    text = " ".join(text.split())
    return text + ("" if not text or text.endswith(".") else ".")


def _command(name: str, command: Any) -> str:
    text = command.help or ""
    examples = [ASIDE.sub("  # ", Text.from_markup(found).plain) for found in EXAMPLES.findall(text)]
    parts = [f"## {name}\n", f"{Text.from_markup(EXAMPLES.sub('', text)).plain.strip()}\n"]
    rows = [_option(one) for one in command.params if not one.hidden]
    if rows:
        parts.append("\n".join(rows))
    parts += [f"```sh\n{example}\n```\n" for example in examples]
    return "\n".join(parts)


def _option(one: Any) -> str:
    is_option = one.opts[0].startswith("-")
    name = ", ".join(f"`{word if is_option else word.upper()}`" for word in [*one.opts, *one.secondary_opts])
    kind = "" if getattr(one, "is_flag", False) or not is_option else f" *{one.metavar or one.name.upper()}*"
    needed = " Required." if one.required else ""
    default = f" Default: `{one.default}`." if one.default not in (None, False, [], ()) else ""
    return f"{name}{kind}\n: {_ended(Text.from_markup(one.help or '').plain)}{needed}{default}\n"
