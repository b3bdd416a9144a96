"""Files as they circulate: one item at a time, whatever is damaged counted by reason and the rest kept.

Arrays are read by a small reader of their own because an event parser (ijson) gives up on the whole rest of a file at
the first damaged byte, and could then neither keep nor count what follows.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from components.data.example import Example, Loaded
from components.errors import UserError

Reader = Callable[[Path, Counter[str]], Iterator[Example]]

DUPLICATE_ID, DUPLICATE_PROMPT = "duplicate id", "duplicate prompt"

CHUNK = 1 << 20  # characters read from an array at once
NESTED = 500  # characters that an item has at least which Python finds nested too deep
LONGEST = 1 << 24  # characters after which an unfinished item is taken for damaged
TOO_LONG = f"longer than {LONGEST:,} characters"

TRAILING = re.compile(r"(?:n\\+|\s)*")  # of a text read backwards, so that a long run of blanks is looked at once
SEPARATOR = re.compile(r"[\s,]*")
OPENING = re.compile(r'\{\s*"[^"]*"\s*:')


class Damaged(Exception):
    """An item that cannot become an Example; the message is the reason it is counted under."""


def collect(read: Reader, path: Path) -> Loaded:
    """All examples that `read` finds in a file, in memory, and what it skipped."""
    skipped: Counter[str] = Counter()
    return Loaded(list(read(path, skipped)), skipped)


def build_examples(
    items: Iterable[Any], build: Callable[[dict[str, Any]], Example], skipped: Counter[str]
) -> Iterator[Example]:
    """Turn parsed items into Examples, counting in `skipped` those for which `build` raises Damaged."""
    for item in items:
        try:
            if not isinstance(item, dict):
                raise Damaged("no JSON object")
            example = build(item)
            check_encoding(example)
        except Damaged as damaged:
            skipped[str(damaged)] += 1
        else:
            yield example


def check_encoding(example: Example) -> None:
    """Refuse text that is no Unicode: bytes that were no UTF-8, or half a surrogate pair.

    Raises:
        Damaged: the text cannot be encoded.
    """
    try:
        "".join((example.id, example.prompt, *example.answers, example.group)).encode()
    except UnicodeEncodeError:
        raise Damaged("text is not UTF-8") from None


def distinct(examples: Iterable[Example], skipped: Counter[str]) -> Iterator[Example]:
    """Leave out an example whose prompt or id was there before, and count it in `skipped`."""
    seen: set[str] = set()
    for example in examples:
        by_prompt, by_id = digest("prompt", example.prompt), digest("id", example.id)
        if by_prompt in seen:
            skipped[DUPLICATE_PROMPT] += 1
        elif by_id in seen:
            skipped[DUPLICATE_ID] += 1
        else:
            seen.update((by_prompt, by_id))
            yield example


def json_array(path: Path, skipped: Counter[str]) -> Iterator[Any]:
    """The items of a file that holds one JSON array, with a few megabytes of it in memory at a time.

    An item that does not parse is counted as "broken JSON", and reading goes on where the next item opens with the
    same first key; the unfinished end of a truncated array is counted the same way.

    Raises:
        UserError: the file cannot be read or holds no array.
    """
    decode = json.JSONDecoder().raw_decode
    with open_text(path) as file:
        buffer = file.read(CHUNK).lstrip()
        if not buffer.startswith("["):
            raise UserError(
                f"{path} is no JSON array of questions; download it again, and unpack it, from its authors."
            )
        position = 1
        while True:
            position = _skip(SEPARATOR, buffer, position)
            if buffer.startswith("]", position):
                return
            try:
                item, position = decode(buffer, position)
            except (ValueError, RecursionError) as error:
                more = file.read(CHUNK) if len(buffer) - position < LONGEST else ""
                if more:
                    buffer, position = buffer[position:] + more, 0
                elif position == len(buffer):
                    return
                else:
                    skipped["broken JSON"] += 1
                    position = _next_opening(buffer, position, NESTED if isinstance(error, RecursionError) else 1)
            else:
                yield item


def json_lines(path: Path, skipped: Counter[str]) -> Iterator[Any]:
    """The items of a JSON Lines file; a line that does not parse is counted as "broken JSON", blank lines are no items.

    A line of more than LONGEST characters is counted as too long.

    Raises:
        UserError: the file cannot be read, or no line of it even begins as a JSON object.
    """
    objects = 0
    with open_text(path) as file:
        for line in lines(file):
            if line is None:
                skipped[TOO_LONG] += 1
                continue
            if not line.strip():
                continue
            objects += line.lstrip().startswith("{")
            try:
                item = json.loads(line)
            except (ValueError, RecursionError):
                skipped["broken JSON"] += 1
            else:
                yield item
    if not objects:
        raise UserError(f"{path} holds no JSON Lines; download it again, and unpack it, from its authors.")


def lines(file: TextIO) -> Iterator[str | None]:
    """The lines of a file; None for one of more than LONGEST characters, of which that much is in memory at most."""
    while line := file.readline(LONGEST + 1):
        if len(line) <= LONGEST or line.endswith("\n"):
            yield line
            continue
        while (rest := file.readline(CHUNK)) and not rest.endswith("\n"):
            pass
        yield None


def open_text(path: Path) -> TextIO:
    """Open a JSON file in the encoding its first bytes tell; bytes that are no UTF-8 become lone surrogates.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    try:
        with path.open("rb") as file:
            encoding = json.detect_encoding(file.read(4))
        return path.open(encoding=encoding, errors="surrogateescape" if encoding.startswith("utf-8") else "replace")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check task.path and the file's permissions.") from None


def text_field(item: dict[str, Any], name: str) -> str:
    """A text of an item, without surrounding blanks.

    Raises:
        Damaged: it is missing, no text, or empty.
    """
    value = item.get(name)
    if value is None:
        raise Damaged(f"no {name}")
    if not isinstance(value, str):
        raise Damaged(f"{name} is no text")
    if not value.strip():
        raise Damaged(f"empty {name}")
    return value.strip()


def clean_answer(answer: str) -> str:
    r"""An answer without surrounding blanks and without the literal \n that some published answers end in."""
    trailing = TRAILING.match(answer[::-1])
    return answer[: len(answer) - (trailing.end() if trailing else 0)].strip()


def answer_field(item: dict[str, Any], name: str = "answer") -> str:
    """The gold answer of an item, cleaned.

    Raises:
        Damaged: it is missing, no text, or empty.
    """
    answer = clean_answer(text_field(item, name))
    if not answer:
        raise Damaged(f"empty {name}")
    return answer


def identifier(value: Any, *content: str) -> str:
    """An item's id where it is a text, else a digest of the item's content.

    Mirrors renumber items with integers; those collide between the files of a data set, a digest of content does not.
    """
    return value.strip() if isinstance(value, str) and value.strip() else digest(*content)


def question_group(question: str) -> str:
    """One group for all items that ask the same question, whatever its case, punctuation and spacing."""
    return digest("question", " ".join(re.findall(r"\w+", question.casefold())))


def digest(*parts: str) -> str:
    """16 hexadecimal digits that depend on every part and nothing else."""
    text = "\x1f".join(parts).encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=8).hexdigest()


def _skip(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return match.end() if match else position


def _next_opening(buffer: str, position: int, least: int) -> int:
    """Where the item after the damaged one at `position` opens: at the same first key, or at any if that is gone.

    least: characters of the damaged one.
    """
    opening = OPENING.match(buffer, position)
    pattern = re.compile(re.escape(opening[0])) if opening else OPENING
    following = pattern.search(buffer, position + least)
    return following.start() if following else len(buffer)
