"""HotPotQA, distractor setting: questions over two of ten paragraphs of Wikipedia (Yang et al., EMNLP 2018).

Source: https://github.com/hotpotqa/hotpot (hotpot_train_v1.1.json, hotpot_dev_distractor_v1.json),
https://arxiv.org/abs/1809.09600
"""

import html
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
    question_group,
    text_field,
)
from components.data.templates import render


def load(path: Path) -> Loaded:
    """All of a file in memory; see `read`."""
    return collect(read, path)


def read(path: Path, skipped: Counter[str]) -> Iterator[Example]:
    """The questions of one file, one at a time; damaged and repeated items are counted in `skipped` by reason.

    The prompt is the linearised problem (prompts/hotpotqa-cold.txt), HTML entities are resolved in prompt and answer
    alike, and the group is the question's text, so that one asked twice is never split apart.

    Raises:
        UserError: the file is missing or holds no JSON array.
    """
    yield from distinct(build_examples(json_array(path, skipped), _example, skipped), skipped)


def _example(item: dict[str, Any]) -> Example:
    resolved = item | {name: _resolve(text) for name, text in item.items() if isinstance(text, str)}
    question, answer = text_field(resolved, "question"), answer_field(resolved)
    texts, distractors = _paragraphs(item)
    paragraphs = "\n\n".join(texts)
    return Example(
        id=identifier(item.get("_id"), question, paragraphs),
        prompt=render("hotpotqa-cold", question=question, paragraphs=paragraphs),
        answers=(answer,),
        group=question_group(question),
        distractors=distractors,
    )


def _paragraphs(item: dict[str, Any]) -> tuple[list[str], tuple[str, ...]]:
    """Title and text of each paragraph, and which of them no supporting fact is in; none where there are no such facts.

    Sentences bring their own leading space.
    """
    context = item.get("context")
    if not isinstance(context, list) or not context:
        raise Damaged("no paragraphs")
    try:
        paragraphs = [(title.strip(), "".join(sentences).strip()) for title, sentences in context]
        needed = {title.strip() for title, _ in item.get("supporting_facts", [])}
    except (AttributeError, TypeError, ValueError):
        raise Damaged("damaged paragraphs") from None
    if not needed <= {title for title, sentences in paragraphs if sentences}:
        raise Damaged("supporting paragraph missing")
    texts = [(title, _resolve(f"{title}\n{sentences}")) for title, sentences in paragraphs if sentences]
    distractors = tuple(text for title, text in texts if title not in needed) if needed else ()
    return [text for _, text in texts], distractors


def _resolve(text: str) -> str:
    """Resolve complete HTML entities (&amp;); `html.unescape` alone would also change bare ones, as in "R&notes"."""
    return re.sub(r"&(?:#[xX]?[0-9a-fA-F]{1,8}|\w{1,32});", lambda entity: html.unescape(entity[0]), text)
