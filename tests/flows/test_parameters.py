"""Changes to settings as Prefect's forms give them."""

import pytest

from components.config import load_settings
from flows.parameters import Changes
from tests.conftest import PROJECT


@pytest.mark.parametrize("text", ["\n\n", "größer", "𝕏 😀", '"\\n', "a: b # c", "null", "1", "&a", ""])
def test_a_text_arrives_as_it_was_written(text: str):
    overrides = Changes.read({"model.answer_prefix": text, "train.steps": 3}).overrides()
    settings = load_settings(PROJECT / "params.yaml", overrides)
    assert (settings.model.answer_prefix, settings.train.steps) == (text, 3)
