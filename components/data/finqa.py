"""FinQA: questions about a page of a company's report, a table between two texts (Chen et al., EMNLP 2021).

Source: https://github.com/czyssrs/FinQA (train.json, dev.json, test.json), https://arxiv.org/abs/2109.00122
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.data.example import Example, Loaded
from components.data.reading import (
    Damaged,
    answer_field,
    build_examples,
    collect,
    distinct,
    identifier,
    json_array,
    text_field,
)
from components.data.templates import render


def load(path: Path) -> Loaded:
    """All of a file in memory; see `read`."""
    return collect(read, path)


def read(path: Path, skipped: Counter[str]) -> Iterator[Example]:
    """The questions of one file, one at a time; damaged and repeated items are counted in `skipped` by reason.

    The prompt is the linearised problem (prompts/finqa-cold.txt), answers[0] is qa.answer cleaned, and the group is
    the page: one page serves several questions.

    Raises:
        UserError: the file is missing or holds no JSON array.
    """
    yield from distinct(build_examples(json_array(path, skipped), _example, skipped), skipped)


def _example(item: dict[str, Any]) -> Example:
    qa = item.get("qa")
    if not isinstance(qa, dict):
        raise Damaged("no question")
    question, answer = text_field(qa, "question"), answer_field(qa)
    page = {"pre_text": _text(item, "pre_text"), "table": _table(item), "post_text": _text(item, "post_text")}
    group = _page(item, *page.values())
    return Example(
        id=identifier(item.get("id"), group, question),
        prompt=render("finqa-cold", question=question, **page),
        answers=(answer,),
        group=group,
    )


def _text(item: dict[str, Any], name: str) -> str:
    sentences = item.get(name)
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        raise Damaged(f"no {name}")
    return " ".join(sentence.strip() for sentence in sentences if sentence.strip())


def _table(item: dict[str, Any]) -> str:
    rows = item.get("table")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) and row for row in rows):
        raise Damaged("no table")
    if not all(isinstance(cell, str | int | float | None) for row in rows for cell in row):
        raise Damaged("no table")
    return "\n".join(" | ".join("" if cell is None else str(cell).strip() for cell in row) for row in rows)


def _page(item: dict[str, Any], *content: str) -> str:
    """The page's filename; where it is gone the id still holds it (<filename>-<number>), or the content stands in."""
    name = item.get("id")
    named = re.fullmatch(r"(.+)-\d+", name) if isinstance(name, str) else None
    return identifier(item.get("filename") or (named and named[1]), *content)
