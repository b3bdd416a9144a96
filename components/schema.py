"""What a settings file may say, as a JSON Schema by which editors complete, explain and check it.

It is made from the settings in `config.py`. Nothing is required there, for a file that `extends` another one says a
part alone; `load_settings` sees what is missing.
"""

from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from components.config import Settings

EXTENDS = {
    "type": "string",
    "description": "Another settings file, relative to this one, which this one changes in part. Leave it out of a file"
    " that stands alone.",
}


def settings_schema(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A schema in which each setting has a `description`, a `default` and, where it is a quantity, a `unit`.

    The first sentence of a description is the meaning, the rest says when to change the setting.

    defaults: the project's params.yaml as it stands, whose values are the defaults.
    """
    schema = _plain(Settings.model_json_schema())
    _add_defaults(schema, schema["$defs"], defaults)
    facts = {"$schema": GenerateJsonSchema.schema_dialect, "title": "The settings of Thaw"}
    return facts | schema | {"properties": {"extends": EXTENDS, **schema["properties"]}}


def _plain(part: Any) -> Any:
    """Without what is required, made-up titles and line breaks, and with the unit of "steps or null" beside both."""
    if isinstance(part, list):
        return [_plain(item) for item in part]
    if not isinstance(part, dict):
        return part
    found = {name: _plain(value) for name, value in part.items() if name != "required"}
    if isinstance(found.get("title"), str):
        del found["title"]
    if isinstance(text := found.get("description"), str):
        found["description"] = " ".join(text.split())
    for choice in found.get("anyOf", ()):
        found |= {"unit": choice.pop("unit")} if "unit" in choice else {}
    return found


def _add_defaults(section: dict[str, Any], kinds: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    for name, setting in section["properties"].items():
        if "$ref" in setting:
            _add_defaults(kinds[setting["$ref"].rpartition("/")[2]], kinds, defaults[name])
        else:
            setting["default"] = defaults[name]
