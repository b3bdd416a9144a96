"""The JSON Schema of settings files, against the settings themselves and the files that the project has."""

import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from components.schema import settings_schema
from components.settings_file import read_yaml
from tests.conftest import PROJECT

DEFAULTS = read_yaml(PROJECT / "params.yaml")
SCHEMA = settings_schema(DEFAULTS)
VALIDATOR = Draft202012Validator(SCHEMA)
OF_A_COUNT = re.compile(r"^(How many|The most) ")


def all_settings() -> dict[str, dict[str, Any]]:
    """Every setting by its dotted name."""
    found = {}
    for name, setting in SCHEMA["properties"].items():
        found[name] = setting
        if "$ref" in setting:
            section = SCHEMA["$defs"][setting["$ref"].rpartition("/")[2]]
            found |= {f"{name}.{inner}": value for inner, value in section["properties"].items()}
    return found


def test_every_setting_says_what_it_means_and_when_to_change_it():
    kinds = {f"{name}.{key}": value for name in ("HubSource", "Stop") for key, value in _settings_of(name).items()}
    for name, setting in (all_settings() | kinds).items():
        assert len(re.split(r"(?<=\.) (?=[A-Z])", setting.get("description", ""))) > 1, name
        assert "\n" not in setting["description"]


def _settings_of(kind: str) -> dict[str, Any]:
    return SCHEMA["$defs"][kind]["properties"]


def test_every_setting_has_the_default_of_the_projects_own_file():
    leaves = {name: setting for name, setting in all_settings().items() if "$ref" not in setting}
    del leaves["extends"]
    for name, setting in leaves.items():
        section, _, last = name.rpartition(".")
        assert setting["default"] == (DEFAULTS[section] if section else DEFAULTS)[last], name
    assert leaves["train.steps"]["unit"] == leaves["probe.look_ahead"]["unit"] == "steps"
    assert leaves["task.max_prompt_tokens"]["unit"] == "tokens"  # null or tokens
    assert all("unit" in setting for setting in leaves.values() if OF_A_COUNT.match(setting["description"]))


@pytest.mark.parametrize(
    "path", ["params.yaml", *(str(path.relative_to(PROJECT)) for path in PROJECT.glob("infra/profiles/**/*.yaml"))]
)
def test_the_projects_files_follow_it(path: str):
    assert [error.message for error in VALIDATOR.iter_errors(read_yaml(PROJECT / path))] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"train": {"step": 3}},
        {"train": {"steps": 0}},
        {"train": {"steps": "many"}},
        {"rollout": {"engine": "llama"}},
        {"hub": {"other": {}}},
        {"seed": 1},
    ],
)
def test_an_editor_underlines_what_thaw_would_refuse(wrong: dict[str, Any]):
    assert len(list(VALIDATOR.iter_errors(wrong))) == 1


def test_it_is_a_schema():
    Draft202012Validator.check_schema(SCHEMA)
