"""Names lead nowhere else, and every text can be made a folder's name."""

from pathlib import Path

import pytest

from components.errors import UserError
from components.names import as_folder, check_name


@pytest.mark.parametrize("name", ["a", "9", "nightly-2026.11_27", "x" * 60])
def test_plain_names_are_taken(name: str):
    check_name(name, "a sweep")


WRONG = ["", ".", "..", ".git", "-rf", "_x", "a/b", "a\\b", "a\n", "a\0b", "a b", "ä", "x" * 61]


@pytest.mark.parametrize("name", WRONG)
def test_others_are_refused_in_a_sentence(name: str):
    with pytest.raises(UserError) as error:
        check_name(name, "a sweep")
    assert str(error.value) == (
        f"{name!r} cannot name a sweep; write at most 60 letters, digits, dots, dashes and underscores, a letter or"
        " digit first."
    )


@pytest.mark.parametrize("text", [*WRONG, "../..", "/etc/passwd", "thaw-skills@best", "thaw/3", "...x"])
def test_any_text_makes_one_folder(text: str):
    made = Path("below") / as_folder(text)
    assert made.parent == Path("below")
    assert made.name == as_folder(text) != ".."
    assert "\0" not in str(made)
