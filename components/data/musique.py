"""MuSiQue: questions over two to four of twenty paragraphs, each step leading to the next (Trivedi et al., TACL 2022).

Source: https://github.com/StonyBrookNLP/musique (musique_ans_v1.0_train.jsonl, musique_ans_v1.0_dev.jsonl),
https://arxiv.org/abs/2108.00573
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.data.example import Example, Loaded
from components.data.reading import (
    Damaged,
    answer_field,
    build_examples,
    clean_answer,
    collect,
    distinct,
    identifier,
    json_lines,
    question_group,
    text_field,
)
from components.data.templates import render


def load(path: Path) -> Loaded:
    """All of a file in memory; see `read`."""
    return collect(read, path)


def read(path: Path, skipped: Counter[str]) -> Iterator[Example]:
    """The questions of one file, one at a time; damaged, unanswerable and repeated items are counted in `skipped`.

    The prompt is the linearised problem (prompts/musique-cold.txt) with paragraphs labelled by idx, because titles
    repeat; the aliases of the answer follow it in `answers`; the group is the question's text.

    Raises:
        UserError: the file is missing or holds no JSON Lines.
    """
    yield from distinct(build_examples(json_lines(path, skipped), _example, skipped), skipped)


def _example(item: dict[str, Any]) -> Example:
    if item.get("answerable") is False:
        raise Damaged("not answerable")
    question, answer = text_field(item, "question"), answer_field(item)
    texts, distractors = _paragraphs(item)
    paragraphs = "\n\n".join(texts)
    return Example(
        id=identifier(item.get("id"), question, paragraphs),
        prompt=render("musique-cold", question=question, paragraphs=paragraphs),
        answers=(answer, *_aliases(item, answer)),
        group=question_group(question),
        distractors=distractors,
    )


def _paragraphs(item: dict[str, Any]) -> tuple[list[str], tuple[str, ...]]:
    """The paragraphs, and which of them no step of the question needs; none where the steps are unknown."""
    paragraphs = item.get("paragraphs")
    if not isinstance(paragraphs, list) or not paragraphs:
        raise Damaged("no paragraphs")
    try:
        texts = {p["idx"]: f"[{p['idx']}] {p['title'].strip()}\n{p['paragraph_text'].strip()}" for p in paragraphs}
        needed = {step.get("paragraph_support_idx") for step in item.get("question_decomposition", [])} - {None}
    except (AttributeError, KeyError, TypeError):
        raise Damaged("damaged paragraphs") from None
    if len(texts) < len(paragraphs):
        raise Damaged("damaged paragraphs")
    if not needed <= texts.keys():
        raise Damaged("supporting paragraph missing")
    needed |= {p["idx"] for p in paragraphs if p.get("is_supporting")}
    distractors = tuple(text for idx, text in texts.items() if idx not in needed) if needed else ()
    return list(texts.values()), distractors


def _aliases(item: dict[str, Any], answer: str) -> list[str]:
    """The other accepted answers, each once; blank or damaged ones are left out."""
    aliases = item.get("answer_aliases")
    texts = [clean_answer(alias) for alias in aliases if isinstance(alias, str)] if isinstance(aliases, list) else []
    return list(dict.fromkeys(alias for alias in texts if alias and alias != answer))
