"""A settings file as text, in which a comment says what each setting does."""

import json
from collections.abc import Iterator, Mapping
from textwrap import wrap
from typing import Any

import yaml

WIDTH = 120


def settings_text(settings: Mapping[str, Any], schema: Mapping[str, Any], *, schema_path: str, title: str) -> str:
    """The YAML of all settings, sections in the schema's order, which are read back as they are.

    schema: as `settings_schema` makes it; the first sentences of its descriptions become the comments.
    schema_path: where editors find it, from the file that is written.
    title: the comment on top.
    """
    lines = [f"# yaml-language-server: $schema={schema_path}", *(f"# {line}" for line in wrap(title, WIDTH - 2))]
    for name, described in schema["properties"].items():
        if name not in settings:
            continue
        if (kind := described.get("$ref")) is None:
            lines += ["", *_setting(name, settings[name], described, "")]
        else:
            section = schema["$defs"][kind.rpartition("/")[2]]["properties"]
            lines += ["", f"# {_meaning(described)}", f"{name}:"]
            for inner, value in settings[name].items():
                lines += _setting(inner, value, section[inner], "  ")
    return "\n".join(lines) + "\n"


def _setting(name: str, value: Any, described: Mapping[str, Any], indent: str) -> Iterator[str]:
    """Its comment behind it where there is room, above it otherwise."""
    written = [f"{indent}{line}" for line in _yaml(name, value)]
    comment = _meaning(described)
    beside = f"{written[0]:<26}  # {comment}"
    if len(written) == 1 and len(beside) <= WIDTH:
        yield beside
        return
    yield from (f"{indent}# {line}" for line in wrap(comment, WIDTH - 2 - len(indent)))
    yield from written


def _yaml(name: str, value: Any) -> list[str]:
    if isinstance(value, dict) and value:
        return [f"{name}:", *(f"  {line}" for line in yaml.safe_dump(value, sort_keys=False).splitlines())]
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    text = text.removesuffix("...\n").strip()
    return [f"{name}: {json.dumps(value) if chr(10) in text else text}"]  # JSON has a text on one line


def _meaning(described: Mapping[str, Any]) -> str:
    """The first sentence, without its full stop."""
    return described["description"].partition(". ")[0].rstrip(".")
