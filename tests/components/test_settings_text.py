"""Settings written as text are read back as they are, each with a comment."""

from pathlib import Path

import pytest

from components.config import load_settings
from components.schema import settings_schema
from components.settings_file import read_yaml
from components.settings_text import WIDTH, settings_text
from tests.conftest import PROJECT

SCHEMA = settings_schema(read_yaml(PROJECT / "params.yaml"))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ['model.answer_prefix="\\n\\n"', "train.learning_rate=1.0e-7", "rollout.server_options=['--a=b: c', '#x']"],
        [
            "model.end_of_thinking=\"größer: # 'x'\"",
            'task.path="a, b"',
            "task.start=cold",
            "task.kinds=[yes it is, '1']",
        ],
        ["race.stopped={garl-q0: {step: 50, reason: 'behind: all'}}", "task.start=0.001", "model.answer_prefix='null'"],
    ],
)
def test_what_is_written_is_read_back(tmp_path: Path, overrides: list[str]):
    settings = load_settings(PROJECT / "params.yaml", overrides)
    text = settings_text(settings.model_dump(mode="json"), SCHEMA, schema_path="a/b.json", title="Mine.")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    assert load_settings(tmp_path / "params.yaml") == settings
    assert text.startswith("# yaml-language-server: $schema=a/b.json\n# Mine.\n")
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "  steps: 200                # Updates of the weights in a run\n" in text
