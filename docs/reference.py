"""The pages that the code writes: every setting from its type, every command from the parser that reads it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
import yaml
from rich.text import Text

from components.config import Settings
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
EXAMPLES = re.compile(r"\[dim\](.*?)\[/dim\]", re.DOTALL)


def settings() -> str:
    """params.yaml, section by section: each setting with its meaning, what it may be, and its default.

    Meanings are the descriptions of the typed settings, defaults those of the project's params.yaml.
    """
    schema, defaults = Settings.model_json_schema(), yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    sections = {name: _section(schema, facts) for name, facts in schema["properties"].items()}
    top = {name: facts for name, facts in schema["properties"].items() if sections[name] is None}
    parts = ["## Arms and seeds\n", _entries("", top, defaults)]
    for name, section in sections.items():
        if section is None:
            continue
        parts += [f"## {name}\n", f"{section['description']}\n"]
        if defaults[name].keys() == section["properties"].keys():
            parts.append(_entries(f"{name}.", section["properties"], defaults[name]))
        else:  # several of them by name, as under `hub`
            for each, values in defaults[name].items():
                parts.append(_entries(f"{name}.{each}.", section["properties"], values))
    return "\n".join(parts)


def commands() -> str:
    """Every command as the parser knows it: what it does, its arguments and options, its examples."""
    return "\n".join(_command(name, command) for name, command in walk("thaw", typer.main.get_command(app)))


def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """The commands that do something, by their whole names."""
    if below := getattr(command, "commands", None):
        for word, one in below.items():
            yield from walk(f"{name} {word}", one)
    else:
        yield name, command


def _section(schema: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any] | None:
    reference = facts.get("$ref") or facts.get("additionalProperties", {}).get("$ref")
    return schema["$defs"][reference.rpartition("/")[2]] if reference else None


def _entries(prefix: str, properties: dict[str, Any], defaults: dict[str, Any]) -> str:
    """A definition list, an entry a setting."""
    return "\n".join(
        f"`{prefix}{name}`\n: {_sentence(facts.get('description', ''))}\n\n  {_sentence(_allowed(facts))}"
        f" Default: `{written(defaults[name])}`.\n"
        for name, facts in properties.items()
    )


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
        return f"a list of {_allowed(facts['items'])}"
    if facts["type"] == "object":
        return "a mapping"
    bounds = [
        said.format(f"{facts[name]:g}") for name, said in LIMITS.items() if name in facts and facts[name] != NO_LIMIT
    ]
    return " ".join([KINDS.get(facts["type"], facts["type"]), *bounds])


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text and text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _command(name: str, command: Any) -> str:
    text = command.help or ""
    examples = [Text.from_markup(found).plain for found in EXAMPLES.findall(text)]
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
    return f"{name}{kind}\n: {_sentence(Text.from_markup(one.help or '').plain)}{needed}{default}\n"
