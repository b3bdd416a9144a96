"""What is in the model registry, side by side."""

import re
from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table

from components.errors import UserError
from components.tracking.registry import Registry, Version

SPLITS = ("test", "validation")  # whose figures count, the better one first
MAJORITY = re.compile(r"(?P<split>test|validation)/maj_at_(?P<k>[0-9]+)")


def comparison_table(registry: Registry, references: Sequence[str]) -> Table:
    """The named versions, or all, best first: by held-out maj@k, and by validation where no test figure exists.

    Raises:
        UserError: nothing is registered, or not what was named.
    """
    versions = [registry.find(reference) for reference in references] or registry.versions()
    if not versions:
        raise UserError("the registry is empty; `thaw sweep` or `thaw train` fills it.")
    title = "Registered checkpoints, percent: of the test split, or (of validation)"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("model", "arm", "start", "seed", "step"):
        table.add_column(heading, no_wrap=True)
    ks = sorted({k for version in versions for split in SPLITS for k in _majorities(version, split)})
    figures = list(dict.fromkeys(["p_at_1", *(f"{name}_at_{k}" for k in ks for name in ("p", "maj"))]))
    for figure in figures:
        table.add_column(figure.replace("_at_", "@"), justify="right", no_wrap=True)
    for version in sorted(versions, key=_rank):
        tags = version.tags
        table.add_row(
            version.reference + "".join(f" @{alias}" for alias in version.aliases),
            _arm(tags),
            tags.get("start", "?"),
            tags.get("seed", "?"),
            str(version.step),
            *(_figure(version, name) for name in figures),
        )
    return table


def _rank(version: Version) -> tuple[int, float]:
    for place, split in enumerate(SPLITS):
        if majorities := _majorities(version, split):
            return place, -majorities[max(majorities)]
    return len(SPLITS), 0.0


def _majorities(version: Version, split: str) -> dict[int, float]:
    """The version's maj@k on a split, by k."""
    found = {match: value for name, value in version.metrics.items() if (match := MAJORITY.fullmatch(name))}
    return {int(match["k"]): value for match, value in found.items() if match["split"] == split}


def _arm(tags: Mapping[str, str]) -> str:
    q = tags.get("q", "none")
    return tags.get("estimator", "?") + ("" if q == "none" else f"-q{q}")


def _figure(version: Version, name: str) -> str:
    """The figure in percent; a majority's with its interval."""
    for split, shown in (("test", "{}"), ("validation", "({})")):
        if (key := f"{split}/{name}") in version.metrics:
            value, low, high = (100 * version.metrics.get(key + end, float("nan")) for end in ("", "_low", "_high"))
            interval = f" [{low:.0f}, {high:.0f}]" if name.startswith("maj") else ""
            return shown.format(f"{value:.1f}{interval}")
    return "-"
