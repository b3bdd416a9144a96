"""What is in the model registry, side by side."""

from collections.abc import Sequence

from rich.table import Table

from components.errors import UserError
from components.tracking.registry import Registry, Version

FIGURES = ("p_at_1", "p_at_16", "maj_at_16")


def comparison_table(registry: Registry, references: Sequence[str]) -> Table:
    """The named versions, or all, best first: by held-out maj@16, and by validation where no test figure exists.

    Raises:
        UserError: nothing is registered, or not what was named.
    """
    versions = [registry.find(reference) for reference in references] or registry.versions()
    if not versions:
        raise UserError("the registry is empty; `thaw sweep` or `thaw train` fills it.")
    table = Table(title="Registered checkpoints (held-out figures, else those of validation in brackets)")
    for heading in ("model", "estimator", "q", "task", "seed", "step"):
        table.add_column(heading, no_wrap=heading == "model")
    for figure in FIGURES:
        table.add_column(figure.replace("_at_", "@"), justify="right")
    for version in sorted(versions, key=_rank):
        tags = version.tags
        table.add_row(
            version.reference + "".join(f" @{alias}" for alias in version.aliases),
            tags.get("estimator", "?"),
            tags.get("q", "?"),
            f"{tags.get('task', '?')} {tags.get('start', '')}",
            tags.get("seed", "?"),
            str(version.step),
            *(_figure(version, name) for name in FIGURES),
        )
    return table


def _rank(version: Version) -> tuple[bool, float]:
    tested = "test/maj_at_16" in version.metrics
    return not tested, -version.metrics.get("test/maj_at_16", version.metrics.get("validation/maj_at_16", 0.0))


def _figure(version: Version, name: str) -> str:
    for split, shown in (("test", "{:.1%} [{:.0%}, {:.0%}]"), ("validation", "({:.1%} [{:.0%}, {:.0%}])")):
        if (key := f"{split}/{name}") in version.metrics:
            return shown.format(*(version.metrics.get(key + end, float("nan")) for end in ("", "_low", "_high")))
    return "-"
