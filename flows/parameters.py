"""What a flow may be asked to do: the settings file, and typed changes to it that Prefect's forms check and explain."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, create_model
from pydantic.fields import FieldInfo

from components.config import Settings


def _all_optional(model: type[BaseModel]) -> type[BaseModel]:
    """A model with the same fields, types and limits, of which none has to be given."""
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = _all_optional(kind)
        else:
            kind = field.rebuild_annotation()
        fields[name] = (kind | None, FieldInfo(default=None, description=field.description))
    return create_model(f"{model.__name__}Changes", __config__=ConfigDict(extra="forbid", frozen=True), **fields)


class Changes(_all_optional(Settings)):
    """Settings that differ from the settings file; what is left out, or empty, stays as it is there."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """From settings by their dotted names: {"train.steps": 20}."""
        nested: dict[str, Any] = {}
        for name, value in values.items():
            *sections, last = name.split(".")
            target = nested
            for section in sections:
                target = target.setdefault(section, {})
            target[last] = value
        return cls.model_validate(nested)

    def overrides(self) -> list[str]:
        """As `load_settings` takes them: "train.steps=20"."""
        return [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in _leaves(self)]

    def __and__(self, other: "Changes") -> "Changes":
        """Both; the other's where they differ."""
        return Changes.read(dict(_leaves(self)) | dict(_leaves(other)))


def _leaves(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value
