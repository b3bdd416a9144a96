"""Columns as the text of a CSV file that a spreadsheet can open without harm."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

FORMULA = re.compile(r"\s*[=+\-@]|[\t\r\n]")  # https://owasp.org/www-community/attacks/CSV_Injection
NUMBER = re.compile(r"[+-]?\d+([.,]\d+)*%?", re.ASCII)


def csv_text(columns: Mapping[str, Sequence[Any]]) -> str:
    """Columns of equal length under their names.

    A text that a spreadsheet would take for a formula gets an apostrophe in front, as people write one there.
    """
    text = io.StringIO()
    rows = csv.writer(text)  # its own line end; with another, Python leaves a \r in a cell without quotes
    rows.writerow(map(_cell, columns))
    rows.writerows(map(_cell, row) for row in zip(*columns.values(), strict=True))
    return text.getvalue()


def _cell(value: Any) -> Any:
    formula = isinstance(value, str) and FORMULA.match(value) and not NUMBER.fullmatch(value)
    return f"'{value}" if formula else value
