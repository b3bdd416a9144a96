"""What a data set is made of, whatever file it came from."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Example:
    """One question with its gold answer and no rationale.

    id: unique within its data set.
    prompt: the text the model is asked, before any chat template.
    answers: answers[0] is the training target, the rest are accepted aliases.
    group: what must not be split apart (a FinQA page); equal to the id where items are independent.
    kind: what sort of question it is, where the data set tells sorts apart (figures are also shown for each of them);
        empty where it does not.
    distractors: paragraphs of the prompt that its answer does not need, each followed there by a blank line; known
        only until the data is prepared, where they are left out of a prompt that is too long.
    """

    id: str
    prompt: str
    answers: tuple[str, ...]
    group: str
    kind: str = ""
    distractors: tuple[str, ...] = ()


@dataclass
class Loaded:
    """The examples of a file, and how many of its items were left out, by reason.

    len(examples) + skipped.total() is the number of items present in the file.
    """

    examples: list[Example] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
