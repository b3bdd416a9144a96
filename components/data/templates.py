"""The text of prompts, kept in prompts/*.txt so that it can be edited without touching code."""

from functools import cache
from pathlib import Path
from string import Template

from components.errors import UserError

FOLDER = Path(__file__).with_name("prompts")


def render(name: str, **fields: str) -> str:
    """Fill the template prompts/<name>.txt; a field stands in it as $field, a dollar sign as $$.

    Raises:
        UserError: the template names a field that does not exist, or has a lone dollar sign.
    """
    try:
        return _template(name).substitute(fields)
    except (KeyError, ValueError) as error:
        known = ", ".join(f"${field}" for field in fields)
        path = FOLDER / f"{name}.txt"
        raise UserError(f"{path}: {error} cannot be filled in; use {known}, and $$ for a dollar sign.") from None


@cache
def _template(name: str) -> Template:
    return Template((FOLDER / f"{name}.txt").read_text(encoding="utf-8").strip())
