"""All studies that have been run, on one page with figures: made of what is kept of them, without running anything."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from components.config import Arm
from components.errors import UserError
from components.report.arms import shade
from components.report.drawing import FAINT
from components.report.page import template
from studies.charts import CHARTS
from studies.study import Study
from studies.tables import Row, tables


def write_page(folders: Sequence[Path], out: Path) -> None:
    """Write `out`, a page without outside parts, from each folder's study.yaml, result.json and table.md.

    Raises:
        UserError: no folder has results, or a result.json is damaged.
    """
    found = [(folder, Study.read(folder), _rows(folder)) for folder in folders if (folder / "result.json").is_file()]
    if not found:
        raise UserError("no study has a result.json yet; run one: `python -m studies NAME`.")
    arms = sorted({row["arm"] for _, _, rows in found for row in rows if row["arm"] != "base"})
    tints = {arm: f"#0101{number:02x}" for number, arm in enumerate(arms)} | {"base": FAINT}
    parsed = [Arm.parse(arm) for arm in arms]
    page = template("page.html.j2", Path(__file__).parent).render(
        palette=[(shade(arm, dark=False), shade(arm, dark=True)) for arm in parsed],
        studies=[_shown(folder, study, rows, tints) for folder, study, rows in found],
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")


def _shown(folder: Path, study: Study, rows: Sequence[Row], tints: dict[str, str]) -> dict[str, Any]:
    drawn: dict[str, str] = {}
    for name in study.tables:
        if name in CHARTS:
            drawn |= CHARTS[name](study, rows, tints)
    return {
        "name": folder.name,
        "question": study.question,
        "charts": {title: Markup(chart) for title, chart in drawn.items()},
        "tables": tables(study, rows),
        "circumstances": (folder / "table.md").read_text(encoding="utf-8").strip().splitlines()[-1],
    }


def _rows(folder: Path) -> list[Row]:
    try:
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{folder / 'result.json'} is damaged; run `python -m studies {folder.name}` again.") from None
