"""What became of the questions that were prepared, in words."""

from typing import Any


def told(split: str, facts: dict[str, Any]) -> str:
    """What became of a split's items, and how long the texts are."""
    counts = {
        **facts["skipped"],
        "repeated": facts["duplicates"],
        "shared with a later split": sum(facts["shared"].values()),
    }
    counts |= {f"longer than {facts['max_prompt_tokens']} tokens": facts["too_long"]}
    left_out = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
    changed = ", ".join(
        f"{facts[name]} {name.replace('_', ' ')}" for name in ("shortened", "wrong_labels") if facts[name]
    )
    prompt, answer = facts["prompt_tokens"], facts["answer_tokens"]
    return (
        f"{split}: {facts['final']} examples of {facts['present']} in {facts['file']}"
        + (f"; left out: {left_out}" if left_out else "")
        + (f"; {changed}" if changed else "")
        + f"; tokens of a prompt {prompt['median']} (median) to {prompt['max']}, of an answer to {answer['max']}"
    )
