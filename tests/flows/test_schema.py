"""`thaw schema`, and the file that editors read."""

from typer.testing import CliRunner

from flows.cli import app
from tests.conftest import PROJECT


def test_the_file_that_editors_read_is_what_the_command_prints():
    printed = CliRunner().invoke(app, ["schema"], catch_exceptions=False).output
    told = "params.schema.json is not what the settings say; renew it: thaw schema > params.schema.json"
    assert printed == (PROJECT / "params.schema.json").read_text(encoding="utf-8"), told
    assert (
        (PROJECT / "params.yaml")
        .read_text(encoding="utf-8")
        .startswith("# yaml-language-server: $schema=params.schema.json\n")
    )
