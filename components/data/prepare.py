"""Raw files to the three splits that everything after reads."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from components.config import TaskSettings
from components.data.example import Example, Loaded
from components.data.lengths import Lengths, Tokens, fit, longest_prompt, statistics
from components.data.noise import Answers, label_noise
from components.data.raw_files import Source, reader_of, scan, sources_of
from components.data.reading import DUPLICATE_ID, DUPLICATE_PROMPT, digest
from components.data.split_files import write
from components.data.splits import SPLITS, Split, assign, drop_shared, limited
from components.data.templates import render
from components.errors import UserError
from components.progress import progress

REPORT = "report.json"
COUNTED = 1000  # the most prompts of a split whose tokens are counted for the report


def prepare(settings: TaskSettings, out: Path, tokens: Tokens, budget: int) -> dict[str, Any]:
    """Write out/{train,validation,test}.arrow (columns id, prompt, answers, group, kind) and out/report.json.

    Splits that the authors publish are kept. A missing validation split is carved from the training file; a missing
    test split is half of the dev file. Limits keep the first examples of a shuffle that depends on the seed and the
    ids alone; a split keeps the order of its file. One input gives the same bytes every time.

    tokens: counts them for the model that will read the prompts.
    budget: tokens of its context that are kept free for what it writes.

    Returns:
        The report, by split: its `file`; what is `present` in that file = `loaded` + `skipped` by reason +
        `duplicates`; the rows `taken` from it for this split; of those the ones dropped because a later split `shared`
        their group, id or prompt; of those that the limit leaves, the ones `too_long` for `max_prompt_tokens` and left
        out; what is left (`final`), of these the ones `shortened` to fit and the ones given a wrong answer on purpose
        (`wrong_labels`); `answer_tokens` of all, and `prompt_tokens` of the `prompts_counted`, at most 1,000 chosen by
        the seed.

    Raises:
        UserError: the folder or a file is missing or cannot be read, or a split ends up empty.
    """
    most = longest_prompt(settings, tokens.context, budget)
    splits = assign(sources_of(settings), settings)
    drop_shared(splits)
    chosen = {name: limited(splits[name], getattr(settings, name), settings.seed) for name in SPLITS}
    for name in SPLITS:
        if not chosen[name]:
            raise UserError(_nothing_left(name, splits[name]))
    wrong = _wrong_labels(splits["train"].source, chosen["train"], settings)
    out.mkdir(parents=True, exist_ok=True)
    report = {}
    for name in SPLITS:
        split, path = replace(splits[name], rows=chosen[name]), out / f"{name}.arrow"
        found = _write_split(split, path, settings, tokens, most, wrong if name == "train" else {})
        report[name] = _facts(splits[name]) | found
    (out / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def load_file(path: Path, settings: TaskSettings, tokens: Tokens, budget: int) -> Loaded:
    """All questions of one raw file of the task, with the prompts of the start that is set; tokens, budget: as above.

    Raises:
        UserError: the file cannot be read, or holds no question that can be asked.
    """
    source = scan(path, reader_of(settings))
    whole = Split(source, set(range(len(source.keys))))
    found, most = Lengths(), longest_prompt(settings, tokens.context, budget)
    shorten = settings.long_prompts == "shorten"
    kept = fit(_prompted(whole, settings, {}), tokens, most, shorten=shorten, sample=lambda _: False, found=found)
    loaded = Loaded(list(kept), source.skipped + Counter({"prompt too long": found.too_long}))
    if not loaded.examples:
        raise UserError(f"nothing of {path} is left to ask: {_reasons(loaded.skipped)}; check the file.")
    return loaded


def _wrong_labels(source: Source, rows: set[int], settings: TaskSettings) -> dict[str, Answers]:
    """The answers that task.label_noise gives to a share of these rows, by the example's id."""
    if not settings.label_noise:
        return {}
    examples = source.read(source.path, Counter())
    right = {example.id: example.answers for row, example in enumerate(examples) if row in rows}
    noisy = label_noise(list(right.values()), settings.label_noise, settings.seed)
    return {name: answers for name, answers in zip(right, noisy, strict=True) if answers != right[name]}


def _write_split(
    split: Split, path: Path, settings: TaskSettings, tokens: Tokens, most: int | None, wrong: Mapping[str, Answers]
) -> dict[str, Any]:
    """Write the rows of a split, those with too long a prompt shortened or left out; returns what the report tells."""
    source, found = split.source, Lengths()
    counted = {source.keys[row].id for row in limited(split, COUNTED, settings.seed)}
    examples = progress(_prompted(split, settings, wrong), f"writing {path.stem}", total=len(split.rows))
    shorten = settings.long_prompts == "shorten"
    ids = write(
        fit(examples, tokens, most, shorten=shorten, sample=lambda item: digest("id", item.id) in counted, found=found),
        path,
    )
    if not ids:
        path.unlink()
        raise UserError(
            f"every prompt of the {path.stem} split has more than {most} tokens; raise task.max_prompt_tokens or lower"
            " rollout.max_new_tokens."
        )
    return {
        "max_prompt_tokens": most,
        "too_long": found.too_long,
        "final": len(ids),
        "shortened": found.shortened,
        "wrong_labels": len(wrong.keys() & set(ids)),
        "prompts_counted": len(found.prompts),
        "prompt_tokens": statistics(found.prompts),
        "answer_tokens": statistics(found.answers),
    }


def _prompted(split: Split, settings: TaskSettings, wrong: Mapping[str, Answers]) -> Iterator[Example]:
    """The rows of a split, read again, with the prompts of the start that is set and the wrong labels."""
    # How warm the embedded task starts is a matter of its model; its prompts are the same in every start.
    warm = settings.start == "warm" and settings.name != "skills"
    for row, example in enumerate(split.source.read(split.source.path, Counter())):
        if row in split.rows:
            prompt = render(f"{settings.name}-warm", problem=example.prompt) if warm else example.prompt
            yield replace(example, prompt=prompt, answers=wrong.get(example.id, example.answers))


def _facts(split: Split) -> dict[str, Any]:
    source = split.source
    repeated = (DUPLICATE_ID, DUPLICATE_PROMPT)
    return {
        "file": source.path.name,
        "present": len(source.keys) + source.skipped.total(),
        "loaded": len(source.keys),
        "skipped": {reason: count for reason, count in sorted(source.skipped.items()) if reason not in repeated},
        "duplicates": sum(source.skipped[reason] for reason in repeated),
        "taken": len(split.rows) + split.shared.total(),
        "shared": dict(sorted(split.shared.items())),
    }


def _nothing_left(name: str, split: Split) -> str:
    facts = _facts(split)
    return (
        f"nothing of {split.source.path} is left for the {name} split: {facts['present']} items,"
        f" skipped: {_reasons(facts['skipped'])};"
        f" {facts['duplicates']} repeated, {split.shared.total()} sharing prompt, id or group with another split;"
        " check the file."
    )


def _reasons(skipped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in skipped.items() if count) or "none"
