"""A user's own questions: JSON Lines of {"prompt", "answer"}, one object a line, UTF-8.

Optional: "id", "group" (items that must not be split apart), "kind" (a short name; figures are also shown by kind), and
"aliases" or "answers", other accepted answers.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.data.example import Example, Loaded
from components.data.reading import (
    TOO_LONG,
    Damaged,
    check_encoding,
    collect,
    digest,
    distinct,
    lines,
    open_text,
    text_field,
)
from components.errors import UserError
from components.names import RULE, is_name

SHAPE = '{"prompt": "...", "answer": "..."}'


def load(path: Path) -> Loaded:
    """All of a file in memory; see `read`."""
    return collect(read, path)


def read(path: Path, skipped: Counter[str]) -> Iterator[Example]:
    """The questions of one file, one at a time; only repeated ones are counted in `skipped`.

    The prompt is taken as it is. An id that is missing is made from the prompt, a group that is missing is the id.

    Raises:
        UserError: the file is missing, or a line cannot be used: a user's own file is wanted whole, so a broken line is
            an error here and no count.
    """
    yield from distinct(_examples(path), skipped)


def _examples(path: Path) -> Iterator[Example]:
    with open_text(path) as file:
        for number, line in enumerate(lines(file), start=1):
            if line is not None and not line.strip():
                continue
            try:
                example = _example(line)
                check_encoding(example)
            except Damaged as damaged:
                raise UserError(f"{path}:{number}: {damaged}; write {SHAPE} on a line, in UTF-8.") from None
            yield example


def _example(line: str | None) -> Example:
    if line is None:
        raise Damaged(f"a line {TOO_LONG}")
    try:
        item = json.loads(line)
    except (ValueError, RecursionError):
        raise Damaged("broken JSON") from None
    if not isinstance(item, dict):
        raise Damaged("no JSON object")
    text_field(item, "prompt")
    name = _name(item, "id") or digest(item["prompt"])
    kind = _name(item, "kind")
    if kind and not is_name(kind):  # it names a metric in MLflow
        raise Damaged(f"kind is no name of {RULE}")
    group = _name(item, "group") or name
    return Example(id=name, prompt=item["prompt"], answers=_answers(item), group=group, kind=kind)


def _name(item: dict[str, Any], field: str) -> str:
    """A field that may be missing, empty then, and may be a whole number."""
    value = item.get(field)
    if not isinstance(value, str | int | None):
        raise Damaged(f"{field} is neither text nor whole number")
    return "" if value is None else str(value).strip()


def _answers(item: dict[str, Any]) -> tuple[str, ...]:
    """The answer, or the first of `answers` where there is no such field, and then all the others, each once."""
    texts = [text_field(item, "answer")] if item.get("answer") is not None else []
    for field in ("answers", "aliases"):
        others = item.get(field) or []
        if not isinstance(others, list) or not all(isinstance(text, str) and text.strip() for text in others):
            raise Damaged(f"{field} is no list of texts")
        texts += [text.strip() for text in others]
    if not texts:
        raise Damaged("no answer")
    return tuple(dict.fromkeys(texts))
