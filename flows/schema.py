"""`thaw schema`: what a settings file may say, for editors and other programs."""

import json

import typer

from components.settings_file import read_yaml
from flows.options import PARAMS, PROJECT


def schema() -> None:
    """Print the JSON Schema of settings files: every setting's meaning, unit, limits and default.

    Editors with a YAML language server read it where a file names it: params.yaml's first line does.

    [dim]thaw schema > params.schema.json[/dim]
    """
    from components.schema import settings_schema

    found = settings_schema(read_yaml(PROJECT / PARAMS))
    typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
