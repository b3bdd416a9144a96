"""Which rows of which raw file make each split.

No example of the test split shares its id, its group or its prompt with validation or training, and none of validation
with training: what would is dropped from the split that comes earlier in SPLITS, and counted.
"""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from components.config import TaskSettings
from components.data.raw_files import Source
from components.data.reading import digest

SPLITS = ("train", "validation", "test")
CARVED = 0.1  # of the training file, for validation, where no size is set


@dataclass
class Split:
    """The rows of a source that make a split, and how many were dropped, by the key shared with a later split."""

    source: Source
    rows: set[int]
    shared: Counter[str] = field(default_factory=Counter)


def assign(sources: dict[str, Source], settings: TaskSettings) -> dict[str, Split]:
    """Which rows of which source make each split, before anything shared is dropped."""
    whole = {role: Split(source, set(range(len(source.keys)))) for role, source in sources.items()}
    if "dev" not in whole:
        examples = len(sources["train"].keys)
        size = min(settings.validation or math.ceil(CARVED * examples), examples // 2)
        validation, train = _divide(sources["train"], size, settings.seed)
        return {"train": train, "validation": validation, "test": whole["test"]}
    if "test" not in whole:
        test, validation = _divide(sources["dev"], math.ceil(len(sources["dev"].keys) / 2), settings.seed)
        return {"train": whole["train"], "validation": validation, "test": test}
    return {"train": whole["train"], "validation": whole["dev"], "test": whole["test"]}


def _divide(source: Source, count: int, seed: int) -> tuple[Split, Split]:
    """At least `count` rows in whole groups, chosen by the seed, and all the others."""
    members = defaultdict(list)
    for row, keys in enumerate(source.keys):
        members[keys.group].append(row)
    carved: set[int] = set()
    for group in sorted(members, key=lambda group: digest(str(seed), group)):
        if len(carved) >= count:
            break
        carved.update(members[group])
    return Split(source, carved), Split(source, set(range(len(source.keys))) - carved)


def drop_shared(splits: dict[str, Split]) -> None:
    """Take from each split the rows that share a key with a later one: test comes first, training gives way."""
    later: set[str] = set()
    for split in (splits[name] for name in reversed(SPLITS)):
        kept = set()
        for row in split.rows:
            shared = [name for name, key in split.source.keys[row]._asdict().items() if key in later]
            if shared:
                split.shared[shared[0]] += 1
            else:
                kept.add(row)
        split.rows = kept
        later.update(key for row in kept for key in split.source.keys[row])


def limited(split: Split, limit: int | None, seed: int) -> set[int]:
    """The first `limit` rows of a shuffle that depends on the seed and the ids alone."""
    return set(sorted(split.rows, key=lambda row: digest(str(seed), split.source.keys[row].id))[:limit])
