"""Names that become folders, metrics or entries of the registry: one rule for all of them."""

import re

from components.errors import UserError

LONGEST = 60
PATTERN = rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{LONGEST - 1}}}"
RULE = f"at most {LONGEST} letters, digits, dots, dashes and underscores, a letter or digit first"


def is_name(text: str) -> bool:
    """Whether a text follows the rule, and so leads nowhere else as a part of a path."""
    return re.fullmatch(PATTERN, text) is not None


def check_name(text: str, what: str) -> None:
    """Refuse a text that is no name.

    what: it names.

    Raises:
        UserError: the text does not follow the rule.
    """
    if not is_name(text):
        raise UserError(f"{text[: 2 * LONGEST]!r} cannot name {what}; write {RULE}.")


def as_folder(text: str) -> str:
    """A folder's name for any text, such as a path or NAME@ALIAS: what no name can have becomes a dash."""
    return re.sub(r"[^A-Za-z0-9_.@-]", "-", text).lstrip(".") or "-"
