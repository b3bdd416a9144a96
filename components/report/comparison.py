"""Registered versions side by side, on one page that needs no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.evaluation.compare import Comparison
from components.evaluation.metrics import Estimate
from components.report.page import template


@dataclass(frozen=True)
class Row:
    """A version and its figures on the test set, by the names people read (`maj@16`)."""

    name: str
    arm: str
    seed: str
    step: int | None
    figures: Mapping[str, Estimate]


def write_page(
    path: Path, on: str, rows: Sequence[Row], names: Sequence[str], first: str, comparisons: Mapping[str, Comparison]
) -> None:
    """Write the page: a chart and a table of all rows, and the paired differences of some versions from the first.

    comparisons: by the name of the other version.
    """
    from markupsafe import Markup

    from components.report import charts

    page = template("comparison.html.j2").render(
        on=on,
        rows=rows,
        names=names,
        chart=Markup(charts.versions([row.name for row in rows], [row.figures for row in rows], names)),
        first=first,
        comparisons=comparisons,
        palette=[],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
